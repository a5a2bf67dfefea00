"""Dynamic weight average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balance._balancer import LossWeighting, balancers
from polytask.balance._per_task import PerTask, Places, positive_setting
from polytask.errors import InputError


def weights(rates: Tensor, temperature: float) -> Tensor:
    """``K softmax(r / T)``, ``(K,)``.

    Args:
        rates: for each task its last average loss over the one before, ``(K,)``.
        temperature: ``T > 0``.
    """
    return len(rates) * (rates.clamp(max=1e6) / temperature).softmax(0)


@balancers.add("dwa")
class DWA(PerTask, LossWeighting):
    """Dynamic weight average: a task whose loss falls more slowly than others' gets more weight.

    The step follows the gradient of ``sum_k w_k L_k`` with ``w = K softmax(r / T)``, where ``r_k`` is the task's average
    loss over the last epoch, divided by that over the epoch before. Liu, Johns and Davison, *End-to-end multi-task learning
    with attention*, CVPR 2019. Steps know no epochs: in their place is a window of each task's own losses (one for each
    batch), and until a task has seen two whole windows its rate is 1, that of a loss that stays as it is.

    Args:
        temperature: ``T > 0``; the greater, the more alike are the weights.
        window: losses to average.
    """

    total: Tensor
    count: Tensor
    before: Tensor
    rate: Tensor

    def __init__(self, temperature: float = 2.0, window: int = 100) -> None:
        super().__init__()
        positive_setting(temperature=temperature)
        if window < 1:
            raise InputError(f"window {window}: expected at least 1")
        self.temperature = temperature
        self.window = window

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        for name in ("total", "count", "before"):
            self.register_buffer(name, torch.zeros(len(tasks)))
        self.register_buffer("rate", torch.ones(len(tasks)))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = torch.stack(tuple(losses.values()))
        combined = weights(self.rate[self.places(losses)], self.temperature).to(values) @ values
        self._remember(*self.agree(losses))
        return combined

    def _remember(self, at: Places, values: Tensor) -> None:
        self.total[at] += values
        self.count[at] += 1
        full = self.count == self.window
        if not bool(full.any()):
            return
        average = self.total / self.window
        self.rate = torch.where(full & (self.before != 0), average / self.before, self.rate)
        self.before = torch.where(full, average, self.before)
        self.total[full] = 0
        self.count[full] = 0
