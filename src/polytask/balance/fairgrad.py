"""Fair resource allocation among tasks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from polytask.balance._balancer import GramianWeighting, balancers
from polytask.balance.solvers import cosines, fair
from polytask.errors import InputError


def weights(gramian: Tensor, alpha: float) -> Tensor:
    """The ``w > 0`` with ``G w = w^(-1 / alpha)``, entry by entry, ``(K,)``; 0 for a gradient that vanishes.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        alpha: the kind of fairness, > 0.
    """
    norms, matrix = cosines(gramian)
    live = norms > 0
    w = np.zeros_like(norms)
    if live.any():
        unit = float(norms.max())
        length = norms[live] / unit
        w[live] = fair(matrix[np.ix_(live, live)], length ** (1 / alpha - 1), 1 / alpha) / length
        w *= unit ** (-2 * alpha / (1 + alpha))
    return torch.from_numpy(w)


@balancers.add("fairgrad")
class FairGrad(GramianWeighting):
    """The step within a ball that maximises the alpha-fair utility of what it gains for each task.

    ``max_d sum_k (g_k^T d)^(1 - alpha) / (1 - alpha)``, solved by ``d = sum_k w_k g_k`` with ``G w = w^(-1 / alpha)``:
    proportional fairness at ``alpha = 1``, where it is `NashMTL` but for the scale; as it grows, the least gain counts more
    and more. Ban and Ji, *Fair resource allocation in multi-task learning*, ICML 2024. The step grows as gradients vanish,
    like ``|g|^(-1/3)`` at ``alpha = 2``; as in the paper's code it is cut at ``max_norm``. Their code multiplies the step by
    the number of tasks before it is cut, which is not done here. Where no step helps all tasks there is no solution, and the
    step all but vanishes. One task alone has weight 1.

    Args:
        alpha: the kind of fairness, > 0.
        max_norm: the greatest norm of the step on the shared parameters; 0 for any.
    """

    scale = "own"

    def __init__(self, alpha: float = 2.0, max_norm: float = 1.0) -> None:
        super().__init__()
        if not 0 < alpha < float("inf"):
            raise InputError(f"alpha {alpha}: expected a finite number > 0")
        if not 0 <= max_norm < float("inf"):
            raise InputError(f"max_norm {max_norm}: expected a finite number >= 0")
        self.alpha = alpha
        self.max_norm = max_norm

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        if len(losses) == 1:
            return torch.ones(1, dtype=gramian.dtype)
        w = weights(gramian, self.alpha)
        norm = max(float(w @ gramian @ w), 0.0) ** 0.5
        return w * (self.max_norm / norm) if norm > self.max_norm > 0 else w
