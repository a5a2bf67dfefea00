"""Dual balancing of losses and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from polytask.balance._balancer import Evaluate, balancers
from polytask.balance._tracked import TrackingBalancer
from polytask.balance.engine.passes import Backward
from polytask.balance.engine.task_gradients import TaskGradients
from polytask.errors import InputError

SMALL = 1e-8
"""Added to the losses, so that their logarithms have a slope where a loss is 0."""


def weights(gramian: Tensor) -> Tensor:
    """The weights that bring all gradients to the length of the longest, ``(K,)``; 0 for one that vanishes.

    Args:
        gramian: inner products of the gradients, ``(K, K)``, float64.
    """
    norms = gramian.diagonal().clamp(min=0).sqrt()
    return torch.where(norms > 0, norms.max() / norms.where(norms > 0, 1.0), 0.0)


@balancers.add("db_mtl")
class DBMTL(TrackingBalancer):
    """The gradients of the logarithms of the losses, averaged over steps, are brought to one length and added up.

    ``y_k = beta_t y_k + (1 - beta_t) g_k`` with ``g_k`` the gradient of ``log L_k``; the step is ``sum_k (max_j |y_j| /
    |y_k|) y_k``. Lin, Jiang, Ye, Zhang, Chen, Chen, Liu, Tsang and Kwok, *Dual-balancing for multi-task learning*, 2023
    (arXiv:2308.12029). ``beta_t = beta t^-decay`` in step ``t``. The unit of a loss has no influence. ``y_k`` starts at 0,
    and is divided by the weights that all ``g_k`` have in it, so that early steps are not shorter.

    Each task's own parameters get the gradient of the logarithm of its loss. In a step of several batches, or processes,
    ``g_k`` is the mean of the gradients of each batch's logarithm.

    It keeps a gradient for each task, ``(K, P)``; with ``beta=0`` none, as the weights then follow from the Gramian.

    Args:
        beta: how much of the last mean is kept, in [0, 1).
        decay: how fast that falls, >= 0.

    Raises:
        InputError: a loss is below 0, and has no logarithm.
    """

    scale = "own"

    def __init__(self, beta: float = 0.9, decay: float = 0.0) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise InputError(f"beta {beta}: expected a number from 0 to below 1")
        if not 0 <= decay < float("inf"):
            raise InputError(f"decay {decay}: expected a finite number >= 0")
        self.beta = beta
        self.decay = decay
        self.holds = beta > 0

    def step(
        self,
        batches: Sequence[Evaluate],
        shared: Sequence[nn.Parameter],
        backward: Backward,
        processes: ProcessGroup | None = None,
    ) -> None:
        super().step([partial(_logarithms, evaluate) for evaluate in batches], shared, backward, processes)

    def settle(self, gradients: TaskGradients) -> None:
        for name, logarithm in gradients.losses.items():
            if logarithm != logarithm:
                raise InputError(f"the loss of task {name!r} has no logarithm: db_mtl expects losses >= 0")
        if self.beta > 0 or not gradients.losses or not bool(gradients.gramian().isfinite().all()):
            super().settle(gradients)
        else:
            gradients.write(weights(gradients.gramian()))

    def rate(self, step: int) -> float:
        return 1 - self.beta * float(step**-self.decay)

    def weigh(self, gramian: Tensor, at: list[int], step: int) -> Tensor:
        return weights(gramian)


def _logarithms(evaluate: Evaluate) -> Mapping[str, Tensor]:
    return {name: (loss + SMALL).log() for name, loss in evaluate().items()}
