"""Gradient surgery: projecting conflicting gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from polytask.balance._balancer import GramianWeighting, balancers
from polytask.balance._orders import Orders, places, random_orders
from polytask.balance.solvers import cosines
from polytask.errors import InputError


def weights(gramian: Tensor, orders: Orders) -> Tensor:
    """The weights of the task gradients in the sum of the projected gradients, ``(K,)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        orders: the other tasks in the order in which each task meets them, ``(K, K - 1)``.
    """
    norms, matrix = cosines(gramian)
    # Each task's projected gradient, in units of its norm, is u_i - sum_j taken[i, j] u_j.
    taken = np.zeros_like(matrix)
    products = matrix.copy()  # of the projected gradients and u_j
    change = np.empty_like(matrix)
    for others, pairs in zip(orders.T, places(orders), strict=True):
        conflict = np.minimum(products.take(pairs), 0)
        taken.put(pairs, conflict)
        np.multiply(matrix.take(others, 0), conflict[:, None], out=change)
        products -= change
    return torch.from_numpy(1 - np.divide(norms @ taken, norms, out=np.zeros_like(norms), where=norms > 0))


@balancers.add("pcgrad")
class PCGrad(GramianWeighting):
    """Each task gradient is projected onto the normal plane of every other gradient that it conflicts with.

    Task ``i`` meets the others in random order: ``g_i -= (g_i^T g_j / |g_j|^2) g_j`` where ``g_i^T g_j < 0`` for what is
    left of ``g_i`` and the original ``g_j``; the step is the sum of what is left. Yu, Kumar, Gupta, Levine, Hausman and
    Finn, *Gradient surgery for multi-task learning*, NeurIPS 2020, Algorithm 1. Conflicts with tasks met early may come
    back with those met late, so the step conflicts with no task for certain only where there are two.

    Args:
        reduction: ``"sum"`` of the projected gradients as in the paper's algorithm, or their ``"mean"``.
    """

    scale = "sum"

    def __init__(self, reduction: str = "sum") -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise InputError(f"reduction {reduction!r}: expected 'sum' or 'mean'")
        self.scale = reduction

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        summed = weights(gramian, random_orders(len(gramian)))
        return summed if self.scale == "sum" else summed / len(gramian)
