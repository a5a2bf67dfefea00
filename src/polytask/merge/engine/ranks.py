"""Exact order statistics of what is too much to sort: a pass or two, histograms of bit patterns, ties by index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

BINS = 2**21
"""Of a histogram, and the most values that are kept for one cut instead of it."""

SAMPLE = 2**14
"""Elements from which the first pass guesses where to look."""


def keys(values: Tensor, signed: bool) -> Tensor:
    """Whole numbers in the order of ``values``, of which float32 and float64 are taken; -0 is below 0.

    The bits themselves have the order of numbers that are not negative.
    """
    bits = values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)
    if not signed:
        return bits
    sign = bits >> (bits.element_size() * 8 - 1)
    return bits ^ (sign & torch.iinfo(bits.dtype).max)


def value_of(key: int, dtype: torch.dtype) -> Tensor:
    """The number whose key this is."""
    whole = torch.tensor(key, dtype=torch.int64 if dtype == torch.float64 else torch.int32)
    sign = whole >> (whole.element_size() * 8 - 1)
    return (whole ^ (sign & torch.iinfo(whole.dtype).max)).view(dtype)


@dataclass
class Cut:
    """Where one row is cut so that exactly ``count`` of its largest values are above, the first of equal ones among them.

    Attributes:
        at: the smallest value above the cut.
        quota: how many values that equal it are above; what comes after these is not.
        parts: whether some values that equal it are not above.
    """

    at: Tensor
    quota: int
    parts: bool
    seen: int = 0

    def above(self, values: Tensor) -> Tensor:
        """Which of the next ``values``, ``(n,)``, are above the cut. Every value has to be asked for once, in order."""
        return torch.from_numpy(self._above(values.numpy()))

    def _above(self, values: Array) -> Array:
        # numpy compares several times faster than torch on a processor.
        at = self.at.numpy()
        if not self.parts:
            everything: Array = values >= at
            return everything
        above: Array = values > at
        left = self.quota - self.seen
        if left > 0:
            ties = np.flatnonzero(values == at)
            self.seen += len(ties)
            above[ties[:left]] = True
        return above


@dataclass
class Search:
    """The search for one `Cut`, in a bracket of keys that gets narrower from pass to pass.

    Keys in the bracket are kept as they are; when there are too many, their histogram is.
    """

    count: int
    low: int
    high: int
    larger: int = 0
    kept: list[Array] = field(default_factory=list)
    size: int = 0
    histogram: Array | None = None

    def start(self) -> None:
        self.larger, self.kept, self.size, self.histogram = 0, [], 0, None

    def look(self, found: Array) -> None:
        """Take in the keys of the next values, ``(n,)``."""
        above = found > found.dtype.type(self.high)
        self.larger += int(np.count_nonzero(above))
        inside = found[(found >= found.dtype.type(self.low)) ^ above]
        self.kept.append(inside)
        self.size += len(inside)
        if self.size > BINS:
            self._count()

    @property
    def shift(self) -> int:
        """How many last bits of a key its bin leaves out."""
        return max(0, (self.high - self.low).bit_length() - BINS.bit_length() + 1)

    @property
    def first(self) -> int:
        """The number of the first bin, counted from key 0."""
        return self.low >> self.shift

    def _count(self) -> None:
        bins = (np.concatenate(self.kept).astype(np.int64) >> self.shift) - self.first
        self.kept, self.size = [], 0
        counted = np.bincount(bins, minlength=(self.high >> self.shift) - self.first + 1)
        self.histogram = counted if self.histogram is None else self.histogram + counted

    def narrow(self, limits: tuple[int, int]) -> tuple[int, int, int] | None:
        """After a pass: the key at the cut, how many equal it, and how many of these are above.

        ``None`` when another pass is needed.
        """
        wanted = self.count - self.larger
        if wanted <= 0:  # it is above the bracket
            self.low, self.high = self.high + 1, limits[1]
            return None
        if self.histogram is not None and self.kept:
            self._count()
        kept = np.concatenate(self.kept) if self.kept else np.zeros(0, dtype=np.int32)
        if wanted > (len(kept) if self.histogram is None else int(self.histogram.sum())):  # below it
            self.low, self.high = limits[0], self.low - 1
            return None
        if self.histogram is None:
            kept.sort()  # few values, and often many equal ones, which slow selection down
            key = kept[len(kept) - wanted]
            first, last = (int(np.searchsorted(kept, key, side)) for side in ("left", "right"))
            return int(key), last - first, wanted - (len(kept) - last)
        from_top = np.cumsum(self.histogram[::-1])
        place = int(np.searchsorted(from_top, wanted))
        low = (self.first + len(self.histogram) - 1 - place) << self.shift
        if self.shift == 0:
            before = int(from_top[place - 1]) if place else 0
            return low, int(from_top[place]) - before, wanted - before
        self.low, self.high = max(self.low, low), min(self.high, low + (1 << self.shift) - 1)
        return None


def exactly(values: Tensor, counts: Sequence[int]) -> list[Cut]:
    """The cuts of ``values``, ``(n,)``, all of which are at hand, with so many above each, 0 to ``n``."""
    found = keys(values, signed=True)
    cuts = []
    for count in counts:
        if (trivial := all_or_nothing(count, len(values), values.dtype)) is not None:
            cuts.append(trivial)
            continue
        key = int(found.kthvalue(len(found) - count + 1).values)
        quota, equal = count - int((found > key).count_nonzero()), int((found == key).count_nonzero())
        cuts.append(Cut(value_of(key, values.dtype), quota, quota < equal))
    return cuts


def all_or_nothing(count: int, total: int, dtype: torch.dtype) -> Cut | None:
    """The cut above which there is nothing, or everything, where that is what is wanted."""
    if 0 < count < total:
        return None
    return Cut(torch.tensor(torch.inf if count <= 0 else -torch.inf, dtype=dtype), 0, False)


class Ranking:
    """The cuts of several rows that come chunk by chunk, as often as it takes.

    Args:
        counts: for each row how many values are to be above each of its cuts, 0 to ``n``.
        total: ``n``, the length of each row.
        sample: some values of each row, ``(K, m)``, from which to guess; none makes for a pass more.
        dtype: of the values.
        signed: whether some may be negative.
    """

    def __init__(
        self,
        counts: Sequence[Sequence[int]],
        total: int,
        sample: Tensor | None,
        dtype: torch.dtype = torch.float32,
        signed: bool = True,
    ) -> None:
        self.dtype, self.signed = dtype, signed
        whole = torch.iinfo(torch.int64 if dtype == torch.float64 else torch.int32)
        self.limits = (int(whole.min), int(whole.max))
        self.cuts: dict[tuple[int, int], Cut] = {}
        self.left: dict[tuple[int, int], Search] = {}
        ordered = None if sample is None or not sample.shape[1] else np.sort(keys(sample, signed).numpy(), axis=1)
        for row, wanted in enumerate(counts):
            for j, count in enumerate(wanted):
                if (trivial := all_or_nothing(count, total, dtype)) is not None:
                    self.cuts[row, j] = trivial
                    continue
                bracket = self.limits if ordered is None else self._guess(ordered[row], count / total)
                self.left[row, j] = Search(count, *bracket)

    def _guess(self, ordered: Array, share: float) -> tuple[int, int]:
        """Keys between which the cut is to be expected, five standard deviations wide on each side."""
        m = len(ordered)
        spread = 5 * (share * (1 - share) * m) ** 0.5 + 5
        low, high = int((1 - share) * m - spread), int((1 - share) * m + spread) + 1
        return (
            int(ordered[low]) if low >= 0 else self.limits[0],
            int(ordered[high]) if high < m else self.limits[1],
        )

    def run(self, passes: Iterable[Iterable[Tensor]]) -> list[list[Cut]]:
        """The cuts by row, each in the order of its counts; every pass gives the chunks of all rows, ``(K, n)``."""
        source = iter(passes)
        while self.left:
            for search in self.left.values():
                search.start()
            for chunk in next(source):
                found = keys(chunk, self.signed).numpy()
                for (row, _), search in self.left.items():
                    search.look(found[row])
            for place, search in list(self.left.items()):
                answer = search.narrow(self.limits)
                if answer is not None:
                    key, equal, quota = answer
                    self.cuts[place] = Cut(value_of(key, self.dtype), quota, quota < equal)
                    del self.left[place]
        rows: dict[int, list[Cut]] = {}
        for row, j in sorted(self.cuts):
            rows.setdefault(row, []).append(self.cuts[row, j])
        return [rows[row] for row in sorted(rows)]
