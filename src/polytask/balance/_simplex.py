"""Weights on the simplex that move from step to step."""

from __future__ import annotations

import torch
from torch import Tensor


def project(values: Tensor) -> Tensor:
    """The point of the simplex, entries >= 0 with sum 1, nearest to ``values``, ``(K,)``."""
    # The projection is the same for values less a constant, and those near the largest are then exact.
    values = values - values.max()
    falling = values.sort(descending=True).values
    levels = (falling.cumsum(0) - 1) / torch.arange(1, len(values) + 1, dtype=values.dtype)
    return (values - levels[(falling > levels).nonzero().max()]).clamp(min=0)


def descend(last: Tensor, gramian: Tensor, rate: float, rho: float) -> Tensor:
    """``last`` after a projected gradient step on ``(w^T G w + rho |w|^2) / 2`` over the simplex, ``(K,)``."""
    return project(last - rate * (gramian @ last + rho * last))


def descend_some(every: Tensor, at: list[int], gramian: Tensor, rate: float, rho: float) -> Tensor:
    """`descend` with the weights ``at`` some places, brought to a sum of 1; in ``every`` they keep the sum that they had."""
    held = every[at].cpu()
    total = held.sum()
    moved = descend(held / total if total > 0 else torch.full_like(held, 1 / len(at)), gramian, rate, rho)
    every[at] = (moved * total).to(every)
    return moved
