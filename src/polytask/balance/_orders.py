"""The orders in which each task meets the others."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Orders: TypeAlias = NDArray[np.int64]
"""The other tasks of each task, ``(K, K - 1)``."""


def random_orders(count: int) -> Orders:
    """Each task's own random order of the others, by torch's generator."""
    orders: Orders = torch.rand(count, count - 1).numpy().argsort(1)
    return orders + (orders >= np.arange(count)[:, None])  # each skips itself


def places(orders: Orders) -> Orders:
    """Where the pairs of each meeting are in a flat ``(K, K)`` matrix, one meeting a row, ``(K - 1, K)``."""
    return np.ascontiguousarray((orders + len(orders) * np.arange(len(orders))[:, None]).T)
