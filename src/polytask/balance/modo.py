"""Multi-objective gradient with double sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balance._balancer import GramianWeighting, balancers
from polytask.balance._simplex import descend_some
from polytask.errors import InputError


@balancers.add("modo")
class MoDo(GramianWeighting):
    """Weights on the simplex that descend, one small step at a time, to those of the shortest step.

    ``w = proj(w - gamma (G w + rho w))``, projected onto the simplex, starting at ``1 / K``. Chen, Fernando, Ying and Chen,
    *Three-way trade-off in multi-objective learning: optimization, generalization and conflict-avoidance*, NeurIPS 2023.
    They take the two factors of ``G = J_1 J_2^T`` from two independent batches, which makes it unbiased. Here it is ``J
    J^T`` of the step's own gradients: its diagonal is too large by their noise, which pulls ``w`` from the noisier tasks,
    and what they prove of the method does not carry over. How far ``w`` moves goes with the square of the gradients, so
    ``gamma`` depends on the scale of the losses.

    A step that lacks some tasks moves the weights of those present among themselves.

    Args:
        gamma: the step size of the weights, > 0.
        rho: how strongly the weights are pulled to one another, >= 0.
    """

    scale = "mean"
    held: Tensor

    def __init__(self, gamma: float = 1e-3, rho: float = 0.1) -> None:
        super().__init__()
        if not 0 < gamma < float("inf"):
            raise InputError(f"gamma {gamma}: expected a finite number > 0")
        if not 0 <= rho < float("inf"):
            raise InputError(f"rho {rho}: expected a finite number >= 0")
        self.gamma = gamma
        self.rho = rho

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        if not tasks:
            raise InputError("modo moves a weight for each task: give the model an attribute 'tasks' with their names")
        self.register_buffer("held", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        at = [self.tasks.index(name) for name in losses]
        return descend_some(self.held, at, gramian, self.gamma, self.rho)
