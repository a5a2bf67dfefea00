"""N-caches: dictionaries of fixed size in which each node keeps neighbours at every hop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.nn.graph import NodeTable


def hashed(keys: Tensor, size: int, seed: int = 0) -> Tensor:
    """The slot of each key, ``(a q + a^2 (q + 1)) mod size`` with ``q = seed mod 100``.

    >>> hashed(torch.tensor([1, 2, 3, 4]), 10).tolist()
    [1, 4, 9, 6]
    """
    a, q = keys % size, seed % 100  # the residue first: squares of large numbers do not fit
    return (a * q + a * a * (q + 1)) % size


class NeighbourCache(NodeTable):
    """For each of ``N`` nodes a dictionary for each hop 0, 1, ..., of fixed sizes: neighbour -> event, time and vector.

    Hop 0 has one slot, for the node itself. A key, which is a node's number plus 1, has one slot in each hop's dictionary,
    by `hashed`, so that no dictionary has it twice. A slot that has another key is overwritten with probability ``replace``
    only; what is empty or has the same key always is. Of a batch's writes to one slot the outcome is as if they came one
    after the other, whatever the device. Whether a collision replaces is a function of the seed and of what is written:
    the same stream leaves the same caches.

    Luo and Li, *Neighborhood-aware scalable temporal network representation learning* (NAT), LoG 2022. Their code fills
    vectors with noise at first, which nothing reads, and compares every write with the probability, ``guard="all"`` here.

    The columns are ``key`` ``(N, S)`` int64, 0 where a slot is empty; ``event`` ``(N, S)`` int64; ``time`` ``(N, S)``
    float64; ``vector`` ``(N, S, width)``. The ``S`` slots are those of hop 0, hop 1, and so on.

    Args:
        nodes: ``N``.
        sizes: slots at hop 1, hop 2, ...
        width: of a vector.
        replace: the probability, from 0 to 1.
        guard: the writes that go by it, ``"collisions"`` or ``"all"``.
        seed: of the hash and of the collisions.
    """

    def __init__(
        self,
        nodes: int,
        sizes: Sequence[int] = (32, 16),
        width: int = 4,
        *,
        replace: float = 0.7,
        guard: str = "collisions",
        seed: int = 0,
    ) -> None:
        if min(sizes, default=1) < 1:
            raise InputError(f"caches of {tuple(sizes)} slots, expected at least 1 each")
        if not 0 <= replace <= 1:
            raise InputError(f"a probability to replace of {replace}, expected 0 to 1")
        if guard not in ("collisions", "all"):
            raise InputError(f"guard {guard!r}, expected 'collisions' or 'all'")
        self.sizes = (1, *sizes)
        self.slots, self.width = sum(self.sizes), width
        self.replace, self.guard, self.seed = replace, guard, seed
        super().__init__(
            nodes,
            key=((self.slots,), torch.int64),
            event=((self.slots,), torch.int64),
            time=((self.slots,), torch.float64),
            vector=((self.slots, width), torch.float32),
        )
        self.key: Tensor
        self.event: Tensor
        self.time: Tensor
        self.vector: Tensor
        self.hop: Tensor
        hops = [hop for hop, size in enumerate(self.sizes) for _ in range(size)]
        self.register_buffer("hop", torch.tensor(hops), False)

    def slot(self, keys: Tensor, hop: int) -> Tensor:
        """Which of the ``S`` slots is a key's at a hop."""
        return sum(self.sizes[:hop]) + hashed(keys, self.sizes[hop], self.seed)

    def put(
        self, nodes: Tensor, slots: Tensor, keys: Tensor, events: Tensor, time: Tensor, vectors: Tensor, order: Tensor
    ) -> None:
        """Offer entries to slots, each ``(M, ...)``.

        Args:
            nodes, slots: where to; ``slots`` as `slot` returned them for ``keys``.
            keys, events, time, vectors: what.
            order: ``(M,)`` int64, at least 0: of two offers to one slot the lower one comes first, of equal ones the first.
        """
        place = nodes * self.slots + slots
        if self.replace < 1:
            free = chances(order, place, keys, seed=self.seed) < self.replace
            if self.guard == "all":
                nodes, place, keys, events, time, vectors, order = (
                    each[free] for each in (nodes, place, keys, events, time, vectors, order)
                )
        count = len(place)
        if count == 0:
            return
        places, inverse = torch.unique(place, return_inverse=True)
        rank = order * count + torch.arange(count, device=place.device)
        if self.replace < 1 and self.guard == "collisions":
            # Who owns the slot in the end: the last that may replace anything; else who was there; else the first to come.
            none = torch.full_like(places, -1)
            last = none.scatter_reduce(0, inverse, rank.where(free, none[0]), "amax")
            first = none.scatter_reduce(0, inverse, rank, "amin", include_self=False)
            held = self.key.view(-1)[places]
            owner = torch.where(last >= 0, keys[last % count], torch.where(held > 0, held, keys[first % count]))
            row = none.scatter_reduce(0, inverse, rank.where(keys == owner[inverse], none[0]), "amax")
            places, row = places[row >= 0], row[row >= 0]
        else:
            row = torch.full_like(places, -1).scatter_reduce(0, inverse, rank, "amax")
        row = row % count
        self.key.view(-1)[places] = keys[row]
        self.event.view(-1)[places] = events[row]
        self.time.view(-1)[places] = time[row]
        self.vector.view(-1, self.width)[places] = vectors[row].to(self.vector.dtype)


def chances(*numbers: Tensor, seed: int = 0) -> Tensor:
    """Uniform in [0, 1), of the shape of ``numbers``, int64: a function of them and the seed, alike on every device."""
    mixed = torch.full_like(numbers[0], seed)
    for number in numbers:
        mixed = (mixed ^ number) * -7046029254386353131  # 2^64 divided by the golden ratio, odd
        mixed = mixed ^ (mixed >> 29)
    mixed = mixed * -4658895280553007687
    return (mixed >> 11 & (1 << 53) - 1).double() / (1 << 53)
