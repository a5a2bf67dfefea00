"""Conflict-averse gradient descent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from polytask.balance._balancer import GramianWeighting, balancers
from polytask.balance.solvers import cosines, raise_until
from polytask.errors import InputError


def weights(gramian: Tensor, c: float) -> Tensor:
    """The weights of the ``d`` with ``|d - g_0| <= c |g_0|`` that maximises ``min_k g_k^T d``, ``(K,)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        c: radius of the ball around the mean gradient ``g_0``, relative to its length, >= 0.
    """
    norms, matrix = cosines(gramian)
    added = np.zeros_like(norms)
    live = norms > 0
    if live.any():
        length = norms[live] / norms.max()
        matrix = matrix[np.ix_(live, live)]
        mean = matrix @ length / len(norms)
        radius = c * max(float(length @ mean) / len(norms), 0.0) ** 0.5
        # d = g_0 + J^T x: the more is asked of min_k g_k^T d, the longer J^T x; a vanishing gradient cannot gain at all.
        top = float(length.min()) * radius * (1 + 1 / c) if radius > 0 and live.all() else 0.0
        added[live] = raise_until(matrix, 1 / length, mean, top, radius**2, squared=True) / length
    return torch.from_numpy(1 / len(norms) + added)


@balancers.add("cagrad")
class CAGrad(GramianWeighting):
    """The step near the mean gradient that does most for the task it serves least.

    ``max_d min_k g_k^T d`` with ``|d - g_0| <= c |g_0|``, where ``g_0`` is the mean of the task gradients. Liu, Liu, Jin,
    Stone and Liu, *Conflict-averse gradient descent for multi-task learning*, NeurIPS 2021. The paper minimises the dual
    ``g_w^T g_0 + c |g_0| |g_w|`` over the simplex, which has no slope where ``g_w = 0``; here the program is solved
    exactly in ``x = c |g_0| w / |g_w|``. Where no step helps all tasks and ``g_w = 0``, many steps are as good, and
    the one nearest to ``g_0`` is taken. One task alone has weight 1.

    Args:
        c: how far from the mean, from 0, the mean itself, to less than 1, within which the paper shows that the mean loss
            converges; larger values are allowed.
        rescale: as in the paper's code: 0, the step ``d`` as it is; 1, divided by ``1 + c^2``; 2, divided by ``1 + c``.
    """

    scale = "mean"

    def __init__(self, c: float = 0.4, rescale: int = 1) -> None:
        super().__init__()
        if not 0 <= c < float("inf"):
            raise InputError(f"c {c}: expected a finite number >= 0")
        if rescale not in (0, 1, 2):
            raise InputError(f"rescale {rescale}: expected 0, 1 or 2")
        self.c = c
        self.rescale = rescale

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        if len(losses) == 1:
            return torch.ones(1, dtype=gramian.dtype)
        return weights(gramian, self.c) / (1, 1 + self.c**2, 1 + self.c)[self.rescale]
