"""Impartial multi-task learning, on the gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from polytask.balance._balancer import GramianWeighting, balancers
from polytask.balance._rank import solve
from polytask.balance.solvers import cosines

LONGEST = 10.0
"""The longest step, beside the longest gradient."""


def weights(gramian: Tensor) -> Tensor:
    """The weights, with sum 1, that give the step equal projections onto all task gradients, ``(K,)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
    """
    norms, matrix = cosines(gramian)
    live = norms > 0
    w = np.zeros_like(norms)
    if live.any():
        # In y_k = w_k |g_k| the projections onto unit gradients are C y.
        y = solve(matrix[np.ix_(live, live)], np.ones(np.count_nonzero(live)))
        if np.abs(y).sum() > 1e-9:
            w[live] = y * (norms[live].min() / norms[live])
            w /= max(w.sum(), np.abs(w).sum() / LONGEST)
    return torch.from_numpy(w)


@balancers.add("imtl_g")
class IMTLG(GramianWeighting):
    """A step with the same projection onto the gradient of every task: ``d^T g_k / |g_k|`` is equal for all ``k``.

    ``d = sum_k w_k g_k`` with ``sum_k w_k = 1``, so ``w`` is in proportion to ``D^-1 C^-1 1`` where ``C`` are the cosines of
    the gradients and ``D`` their norms. Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, *Towards impartial multi-task
    learning*, ICLR 2021: the part that balances gradients.

    Weights may be negative. Where their sum comes near zero, or below, which would make the step infinitely long or turn it
    against all tasks, it is held at a tenth of the sum of their sizes: the step keeps its direction, and is at most ten
    times as long as the longest gradient. Where gradients depend on one another, the pseudo-inverse of ``C`` gives
    projections as equal as can be; two opposite gradients alone make no step. A gradient that vanishes has weight 0.
    """

    scale = "mean"

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        return weights(gramian)
