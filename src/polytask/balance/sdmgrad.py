"""Stochastic direction-oriented multi-objective gradient descent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from polytask.balance._balancer import balancers
from polytask.balance._preference import PreferringWeighting
from polytask.balance.solvers import Array, cosines, min_norm, raise_until
from polytask.errors import InputError


def weights(gramian: Tensor, pull: float, shares: Array | None = None) -> Tensor:
    """``(w + lambda u) / (1 + lambda)`` for the ``w`` on the simplex that makes the step with them shortest, ``(K,)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        pull: ``lambda >= 0``.
        shares: ``u >= 0`` with sum 1, ``(K,)``; ``1 / K`` each by default.
    """
    norms, matrix = cosines(gramian)
    shares = np.full(len(norms), 1 / len(norms)) if shares is None else shares
    live = norms > 0
    w = np.zeros_like(norms)
    if live.any():
        length = norms[live] / norms.max()
        directed = pull * matrix[np.ix_(live, live)] @ (length * shares[live])
        # A bound on the smallest product g_k^T d; a vanishing gradient keeps it at zero.
        top = float(length.min()) * (1 + pull) if live.all() else 0.0
        w[live] = raise_until(matrix[np.ix_(live, live)], 1 / length, directed, top, 1.0, squared=False) / length
    if w.sum() < 1:
        # What is left makes no step: it goes to the combination that vanishes.
        w += (1 - w.sum()) * min_norm(norms, matrix)
    return torch.from_numpy((w / w.sum() + pull * shares) / (1 + pull))


@balancers.add("sdmgrad")
class SDMGrad(PreferringWeighting):
    """Between the common descent of all tasks and the preferred mean of their gradients.

    ``d = (g_w + lambda g_u) / (1 + lambda)`` where ``w`` minimises ``|g_w + lambda g_u|^2`` over the simplex and ``g_u`` is
    ``sum_k u_k g_k``; `MGDA` at 0, the mean as ``pull`` grows. Xiao, Ban and Ji, *Direction-oriented multi-objective
    learning: simple and provable stochastic algorithms*, NeurIPS 2023. Their inner problem is solved exactly here, not by
    a few projected gradient steps from the last ``w``. To have an unbiased slope of it they draw independent batches; with
    the one batch of a step, as here and in their code, the Gramian of the same noise is the biased form of the method.

    Args:
        pull: ``lambda >= 0``; 0.3 as in the paper's experiments.
        preference: a number > 0 for each task; a task that is not named has 1. ``u`` is these divided by their sum.
    """

    scale = "mean"

    def __init__(self, pull: float = 0.3, preference: Mapping[str, float] | None = None) -> None:
        super().__init__(preference)
        if not 0 <= pull < float("inf"):
            raise InputError(f"pull {pull}: expected a finite number >= 0")
        self.pull = pull

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        return weights(gramian, self.pull, self.shares(losses))
