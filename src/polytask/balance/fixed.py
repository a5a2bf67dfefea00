"""Static weights, stated or tuned by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balance._balancer import LossWeighting
from polytask.errors import InputError, suggest


class Fixed(LossWeighting):
    """Static weights: the step follows the gradient of ``sum_k w_k L_k``.

    Args:
        weights: a weight >= 0 for each task; a task that is not named has weight 1.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise InputError(f"weight {weight} of task {name!r}: expected a finite number >= 0")
        self.weights = dict(weights)

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        for name in self.weights:
            if name not in tasks:
                raise InputError(f"weights name an unknown task {name!r}: {suggest(name, tasks)}")

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
