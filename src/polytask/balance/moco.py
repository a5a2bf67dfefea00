"""Multi-objective gradient correction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.balance._balancer import balancers
from polytask.balance._simplex import descend_some
from polytask.balance._tracked import TrackingBalancer
from polytask.errors import InputError


@balancers.add("moco")
class MoCo(TrackingBalancer):
    """Tracked task gradients, less noisy than those of a batch, under weights that descend to those of the shortest step.

    ``y_k = y_k - beta_t (y_k - g_k)``, starting at 0; ``w = proj(w - gamma_t (Y Y^T w + rho w))``, projected onto the
    simplex, starting at ``1 / K``; the step is ``sum_k w_k y_k``. Fernando, Shen, Liu, Chaudhury, Murugesan and Chen,
    *Mitigating gradient bias in multi-objective learning: a provably convergent approach*, ICLR 2023. ``beta_t = beta
    t^-decay`` and ``gamma_t = gamma t^-decay`` in step ``t``. The gradients enter as they are, where LibMTL brings each to
    the size of its loss; and ``y_k`` is divided by the weights that all ``g_k`` have in it, so that early steps are as long
    as a mean too.

    It keeps a gradient for each task, ``(K, P)``. A step that lacks some tasks moves the weights of those present among
    themselves.

    Args:
        beta: the step size of the tracked gradients, in (0, 1].
        gamma: the step size of the weights, > 0.
        rho: how strongly the weights are pulled to one another, >= 0.
        decay: how fast both step sizes fall, >= 0.
    """

    scale = "mean"
    held: Tensor

    def __init__(self, beta: float = 0.5, gamma: float = 0.1, rho: float = 0.0, decay: float = 0.5) -> None:
        super().__init__()
        if not 0 < beta <= 1:
            raise InputError(f"beta {beta}: expected a number > 0, up to 1")
        if not 0 < gamma < float("inf"):
            raise InputError(f"gamma {gamma}: expected a finite number > 0")
        for name, value in (("rho", rho), ("decay", decay)):
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} {value}: expected a finite number >= 0")
        self.beta = beta
        self.gamma = gamma
        self.rho = rho
        self.decay = decay

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        self.register_buffer("held", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    def rate(self, step: int) -> float:
        return self.beta * float(step**-self.decay)

    def weigh(self, gramian: Tensor, at: list[int], step: int) -> Tensor:
        return descend_some(self.held, at, gramian, self.gamma * float(step**-self.decay), self.rho)
