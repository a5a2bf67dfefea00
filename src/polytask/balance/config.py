"""Conflict-free inverse gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from polytask.balance._balancer import balancers
from polytask.balance._preference import PreferringWeighting
from polytask.balance._rank import solve
from polytask.balance.solvers import Array, cosines


def weights(gramian: Tensor, preferences: Array | None = None) -> Tensor:
    """The weights of the step with the wanted cosines, as long as the sum of the gradients' projections onto it, ``(K,)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        preferences: ``p > 0``, which the cosines are in proportion to, ``(K,)``; 1 each by default.
    """
    norms, matrix = cosines(gramian)
    live = norms > 0
    preferences = np.ones_like(norms) if preferences is None else preferences
    # pinv(U) p = U^T C^+ p for unit gradients U with cosines C.
    y = np.zeros_like(norms)
    y[live] = solve(matrix[np.ix_(live, live)], preferences[live]) if live.any() else 0
    products = matrix @ y
    squared = y @ products
    if squared <= 1e-12 * preferences.max() ** 2:
        return torch.zeros_like(gramian[0])
    length = (norms @ products) / squared
    return torch.from_numpy(length * np.divide(y, norms, out=np.zeros_like(y), where=live))


@balancers.add("config")
class ConFIG(PreferringWeighting):
    """A step with the same positive cosine with the gradient of every task, so that it conflicts with none.

    Its direction is that of ``pinv(U) 1`` where the rows of ``U`` are the unit gradients; its length is the sum of the
    projections of the gradients onto it. Liu, Chu and Thuerey, *ConFIG: towards conflict-free training of physics informed
    neural networks*, ICLR 2025. From the Gramian alone: ``pinv(U) 1 = U^T C^+ 1`` with the cosines ``C = U U^T``.

    Where gradients depend on one another the cosines are as equal as can be; two opposite gradients alone make no step. A
    gradient that vanishes has weight 0.

    Args:
        preference: a number > 0 for each task; a task that is not named has 1. Twice the preference, twice the cosine.
    """

    scale = "sum"

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        return weights(gramian, self.preferences(losses))
