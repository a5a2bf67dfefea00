"""Krum and Multi-Krum: the gradients that have near neighbours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.balance._balancer import GramianWeighting, balancers
from polytask.errors import InputError


def weights(gramian: Tensor, byzantine: int, selected: int) -> Tensor:
    """Equal weights with sum 1 on the task gradients nearest to their neighbours, ``(K,)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        byzantine: how many gradients may be anything.
        selected: how many to select.
    """
    count = len(gramian)
    unit = gramian / gramian.diagonal().max().clamp(min=torch.finfo(gramian.dtype).tiny)
    squares = unit.diagonal()
    distances = (squares[:, None] + squares - 2 * unit).clamp(min=0).fill_diagonal_(0)
    nearest = min(max(count - byzantine - 2, 1), count - 1)
    scores = distances.sort(1).values[:, 1 : 1 + nearest].sum(1)
    last = scores.sort().values[min(selected, count) - 1]
    chosen = scores <= last * (1 + 1e-9)
    return chosen.double() / chosen.sum()


@balancers.add("krum")
class Krum(GramianWeighting):
    """The step is the gradient of the task whose nearest neighbours are nearest, or the mean of several such gradients.

    The score of a task is the sum of the squared distances of its gradient to the ``K - f - 2`` gradients nearest to it; the
    ``m`` tasks of least score are selected. Blanchard, El Mhamdi, Guerraoui and Stainer, *Machine learning with adversaries:
    Byzantine tolerant gradient descent*, NeurIPS 2017. What they prove of ``f`` arbitrary gradients needs ``2 f + 2 < K``.

    With fewer than ``f + 3`` tasks in a step the nearest neighbour alone counts. Tasks whose scores tie are all selected,
    where the paper takes the one of least number: with one neighbour, the nearest pair always ties.

    Args:
        byzantine: ``f >= 0``.
        selected: ``m >= 1``; more than 1 is Multi-Krum.
    """

    scale = "mean"

    def __init__(self, byzantine: int = 1, selected: int = 1) -> None:
        super().__init__()
        if byzantine < 0:
            raise InputError(f"byzantine {byzantine}: expected a number of tasks >= 0")
        if selected < 1:
            raise InputError(f"selected {selected}: expected a number of tasks >= 1")
        self.byzantine = byzantine
        self.selected = selected

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        return weights(gramian, self.byzantine, self.selected)
