"""A small sample of a stream, uniform within each group."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from polytask.errors import InputError


class Reservoir:
    """Keeps, of each group, the items of highest random priority: each with equal probability, ``capacity_of_group / n``.

    An item draws its priority when it is seen for the first time, so that what comes back in a later epoch counts once. All
    groups have equal shares of the capacity. When a new group comes, the others keep those of their items that have the
    highest priorities, which are a uniform sample again; TAME's own heaps know the number of groups from the start.

    Args:
        capacity: items in all.
        seed: of the priorities.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise InputError(f"reservoir: capacity {capacity}, expected at least 1")
        self.capacity = capacity
        self._random = random.Random(seed)
        self._seen: set[Hashable] = set()
        self._heaps: dict[Hashable, list[tuple[float, int, Any]]] = {}

    def add(self, key: Hashable, group: Hashable, item: Any) -> None:
        """See an item; ``key`` says which it is."""
        if key in self._seen:
            return
        self._seen.add(key)
        heap = self._heaps.setdefault(group, [])
        heapq.heappush(heap, (self._random.random(), len(self._seen), item))
        quota = max(1, self.capacity // len(self._heaps))
        for other in self._heaps.values():
            while len(other) > quota:
                heapq.heappop(other)

    def items(self) -> list[Any]:
        """What is kept, group by group."""
        return [item for heap in self._heaps.values() for _, _, item in sorted(heap, key=lambda entry: entry[1])]

    def clear(self) -> None:
        """Forget everything, what was seen too."""
        self._seen.clear()
        self._heaps.clear()

    def __len__(self) -> int:
        return sum(len(heap) for heap in self._heaps.values())


def keys_of(inputs: Tensor) -> list[bytes]:
    """A key for each row, by its content: equal rows are one item."""
    rows = inputs.detach().cpu().reshape(len(inputs), -1).contiguous()
    return [hashlib.blake2b(row.view(torch.uint8).numpy().tobytes(), digest_size=16).digest() for row in rows]
