"""Gradient vaccine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.balance._balancer import GramianWeighting, balancers
from polytask.balance._orders import Orders, places, random_orders
from polytask.balance.solvers import Array, cosines
from polytask.errors import InputError

NEAR = 1 - 1e-5
"""Targets are held below this: what turns a gradient fully into another grows without bound, and makes much of rounding."""

MOST = 100.0
"""The most that is added of another gradient in one meeting, beside a gradient's own length."""

VANISHED = 1e-7
"""A changed gradient this short beside what it was is rounding, and has no direction."""


def weights(gramian: Tensor, orders: Orders, targets: Array, beta: float) -> tuple[Tensor, Array]:
    """The weights of the task gradients in the sum of the changed gradients, ``(K,)``, and the new targets, ``(K, K)``.

    Args:
        gramian: inner products of the task gradients, ``(K, K)``, float64.
        orders: the other tasks in the order in which each task meets them, ``(K, K - 1)``.
        targets: the cosine that the gradient of each task should have with every other, ``(K, K)``.
        beta: how far the targets move to what was seen.
    """
    norms, matrix = cosines(gramian)
    pairs = places(orders)
    held = np.minimum(targets, NEAR)
    cotangents = held / np.sqrt(np.maximum(1 - held**2, 1e-16))
    cotangents[:, norms == 0] = -1e300  # nothing is added of a gradient that vanishes
    # Each task's changed gradient, in units of its norm, is u_i + sum_j added[i, j] u_j.
    added = np.zeros_like(matrix)
    products = matrix.copy()  # of the changed gradients and u_j
    squares = np.ones_like(norms)  # of the changed gradients
    seen = np.empty(pairs.shape)
    change = np.empty_like(matrix)
    for others, at, cotangent, cosine in zip(orders.T, pairs, cotangents.take(pairs), seen, strict=True):
        along = products.take(at)
        length = np.sqrt(squares)
        np.divide(along, np.maximum(length, VANISHED), out=cosine)
        sine = np.sqrt(np.maximum(1 - cosine * cosine, 1e-300))
        # Above zero where the cosine is below its target.
        more = np.minimum(np.maximum(length * (cotangent * sine - cosine), 0), MOST)
        added.put(at, more)
        squares = np.maximum(squares + more * (2 * along + more), 0)
        np.multiply(matrix.take(others, 0), more[:, None], out=change)
        products += change
    moved = targets.copy()
    moved.put(pairs, (1 - beta) * targets.take(pairs) + beta * np.clip(seen, -1, 1))
    total = 1 + np.divide(norms @ added, norms, out=np.zeros_like(norms), where=norms > 0)
    return torch.from_numpy(total), moved


@balancers.add("gradvac")
class GradVac(GramianWeighting):
    """Gradients are turned towards one another until their cosines are those that the pair of tasks has had on average.

    Task ``i`` meets the others in random order; where the cosine ``c`` of what ``g_i`` has become with ``g_j`` is below the
    target ``t_ij``, as much of ``g_j`` is added as brings it there: ``|g_i| (t sqrt(1 - c^2) - c sqrt(1 - t^2)) / (|g_j|
    sqrt(1 - t^2))``. Then ``t_ij = (1 - beta) t_ij + beta c``, starting at 0, where the first step is that of `PCGrad`. The
    step is the sum. Wang, Tsvetkov, Firat and Cao, *Gradient vaccine: investigating and improving multi-task optimization in
    massively multilingual models*, ICLR 2021; here with one target for all shared parameters together. Targets move in every
    meeting, whether or not the gradient is changed. Where targets are all but 1 less is added, so that steps stay finite.

    Args:
        beta: how far targets move in a step, in [0, 1]. 0.5 suits short runs; the paper's long ones take 0.01.
    """

    scale = "sum"
    targets: Tensor

    def __init__(self, beta: float = 0.5) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise InputError(f"beta {beta}: expected a number from 0 to 1")
        self.beta = beta

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        if not tasks:
            raise InputError(
                "gradvac has a target for each pair of tasks: give the model an attribute 'tasks' with their names"
            )
        self.register_buffer("targets", torch.zeros(len(tasks), len(tasks), dtype=torch.float64))

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        at = np.array([self.tasks.index(name) for name in losses])
        targets = self.targets.cpu().numpy().copy()
        every = np.ix_(at, at)
        total, targets[every] = weights(gramian, random_orders(len(losses)), targets[every], self.beta)
        self.targets.copy_(torch.from_numpy(targets))
        return total
