"""Exact order statistics of what is too much to sort: a pass or two, histograms of bit patterns, ties by index."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.merge.engine.fused import fused

Array = np.ndarray[Any, np.dtype[Any]]

BINS = 2**21
"""Of a histogram, and the most values that are kept for one cut instead of it."""

SAMPLE = 2**14
"""Elements from which the first pass guesses where to look."""

NEIGHBOURS = 2**8
"""Of these, how many are read at once, next to one another."""


def keys(values: Tensor, signed: bool) -> Tensor:
    """Whole numbers in the order of ``values``, of which float32 and float64 are taken, or in that of their magnitudes.

    The bits themselves have the order of numbers that are not negative. Where signs count, -0 is below 0.
    """
    bits = values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)
    return torch.from_numpy(_keys(bits.numpy(), signed))


def _keys(bits: Array, signed: bool) -> Array:
    positive = np.iinfo(bits.dtype).max
    return bits ^ ((bits >> (bits.itemsize * 8 - 1)) & positive) if signed else bits & positive


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

    @cached_property
    def value(self) -> float:
        """``at`` as a number."""
        return float(self.at)

    def above(self, values: Tensor) -> Tensor:
        """Which of the next ``values``, ``(n,)``, are above the cut. Every value has to be asked for once, in order.

        Where the cut is one of magnitudes, ``values`` are these.
        """
        above, seen = _above(values.numpy(), self.at.numpy(), self.left)
        self.seen += seen
        return torch.from_numpy(above)

    @property
    def left(self) -> int:
        """How many of the next values that equal ``at`` are above the cut."""
        return self.quota - self.seen if self.parts else sys.maxsize


def _above(values: Array, at: Any, left: int) -> tuple[Array, int]:
    """Which of ``values``, ``(n,)``, are above ``at``, with the first ``left`` of those that equal it; how many do."""
    # numpy compares several times faster than torch on a processor.
    ties = values == at
    seen = int(np.count_nonzero(ties))
    if left >= seen:
        everything: Array = values >= at
        return everything, seen
    above: Array = values > at
    above[np.flatnonzero(ties)[: max(left, 0)]] = True
    return above, seen


def _split(bits: Array, signed: bool, low: Any, high: Any) -> tuple[int, Array]:
    found = _keys(bits, signed)
    above = found > high
    return int(np.count_nonzero(above)), found[(found >= low) ^ above]


@fused(_split)
def split(bits: Array, signed: bool, low: Any, high: Any) -> tuple[int, Array]:
    """How many keys of values with ``bits``, ``(n,)``, are larger than ``high``, and those from ``low`` to it, in order."""
    positive = bits.dtype.type(np.iinfo(bits.dtype).max)
    shift = bits.dtype.type(bits.itemsize * 8 - 1)
    larger = size = 0
    inside = np.empty(len(bits) + 1, bits.dtype)
    eights = np.zeros(8, np.uint64)
    marks = eights.view(np.uint8)  # of 64 values, which are in the bracket
    for start in range(0, len(bits), 64):
        part = bits[start : start + 64]
        marks[len(part) :] = 0
        above = within = np.int32(0)  # counted in 32 bits, several at a time
        for i in range(len(part)):
            key = part[i] ^ ((part[i] >> shift) & positive) if signed else part[i] & positive
            above = np.int32(above + np.int32(key > high))
            within = np.int32(within + np.int32(key >= low))
            marks[i] = np.uint8(key >= low) ^ np.uint8(key > high)
        larger += int(above)
        if within == above:
            continue
        for j in range(8):
            if eights[j]:
                for i in range(8 * j, min(8 * j + 8, len(part))):
                    inside[size] = part[i] ^ ((part[i] >> shift) & positive) if signed else part[i] & positive
                    size += marks[i]  # unless it counts, the next one takes its place
    return larger, inside[:size].copy()


def _keep(values: Array, low: Any, low_left: int, high: Any, high_left: int) -> tuple[int, int]:
    size = np.abs(values)
    kept, low_seen = _above(size, low, low_left)
    above, high_seen = _above(size, high, high_left)
    np.multiply(values, kept & ~above, out=values)
    return low_seen, high_seen


@fused(_keep)
def keep(values: Array, low: Any, low_left: int, high: Any, high_left: int) -> tuple[int, int]:
    """Make 0, in place, what of ``values``, ``(n,)``, has not a magnitude above ``low``, or has one above ``high``.

    Of those that equal ``low`` or ``high``, the first so many are above it. Returns how many equal ``low``, and ``high``.
    """
    one, infinite = values.dtype.type(1), values.dtype.type(np.inf)
    low_seen = high_seen = 0
    for start in range(0, len(values), 1024):
        part = values[start : start + 1024]
        at_low = at_high = np.int32(0)
        for i in range(len(part)):
            size = abs(part[i])
            at_low = np.int32(at_low + np.int32(size == low))
            at_high = np.int32(at_high + np.int32(size == high))
        all_low, all_high = low_seen + at_low <= low_left, high_seen + at_high <= high_left
        if (all_low or low_seen >= low_left) and (all_high or high_seen >= high_left):
            # All that equal a cut here are on one side of it: comparing is enough, several at a time.
            least = low if all_low else np.nextafter(low, infinite)
            most = high if all_high else np.nextafter(high, infinite)
            for i in range(len(part)):
                size = abs(part[i])
                part[i] *= one * ((size >= least) & (size < most))
            low_seen += int(at_low)
            high_seen += int(at_high)
            continue
        for i in range(len(part)):
            size = abs(part[i])
            kept = (size > low) | ((size == low) & (low_seen < low_left))
            above = (size > high) | ((size == high) & (high_seen < high_left))
            low_seen += size == low
            high_seen += size == high
            part[i] *= one * (kept & ~above)
    return low_seen, high_seen


def trim(values: Array, low: Cut, high: Cut | None = None) -> None:
    """Make 0, in place, what of ``values``, ``(n,)``, has no magnitude above ``low``, or has one above ``high``."""
    most, left = (values.dtype.type(np.inf), 0) if high is None else (high.at.numpy()[()], high.left)
    seen = keep(values, low.at.numpy()[()], low.left, most, left)
    low.seen += seen[0]
    if high is not None:
        high.seen += seen[1]


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

    def look(self, bits: Array, signed: bool) -> None:
        """Take in the bits of the next values, ``(n,)``."""
        larger, inside = split(bits, signed, bits.dtype.type(self.low), bits.dtype.type(self.high))
        self.larger += larger
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


def exactly(values: Tensor, counts: Sequence[int], signed: bool = True) -> list[Cut]:
    """The cuts of ``values``, ``(n,)``, all of which are at hand, with so many above each, 0 to ``n``."""
    found = keys(values, signed)
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


def needs_search(counts: Sequence[Sequence[int]], total: int) -> bool:
    """Whether any of so many of ``total`` values are to be above a cut: of none or all it is known without a look."""
    return any(0 < count < total for wanted in counts for count in wanted)


class Ranking:
    """The cuts of several rows that come chunk by chunk, as often as it takes.

    Args:
        counts: for each row how many values are to be above each of its cuts, 0 to ``n``.
        total: ``n``, the length of each row.
        sample: some values of each row, ``(K, m)``, from which to guess; none makes for a pass more.
        dtype: of the values.
        signed: whether values are in order, or their magnitudes.
    """

    def __init__(
        self,
        counts: Sequence[Sequence[int]],
        total: int,
        sample: Tensor | None,
        dtype: torch.dtype = torch.float32,
        signed: bool = True,
    ) -> None:
        self.rows, self.dtype, self.signed = len(counts), dtype, signed
        whole = torch.iinfo(torch.int64 if dtype == torch.float64 else torch.int32)
        self.limits = (int(whole.min) if signed else 0, int(whole.max))
        self.cuts: dict[tuple[int, int], Cut] = {}
        self.left: dict[tuple[int, int], Search] = {}
        looked_at = None if sample is None or not sample.shape[1] else keys(sample, signed).numpy()
        ordered = None if looked_at is None else np.sort(looked_at, axis=1)
        for row, wanted in enumerate(counts):
            for j, count in enumerate(wanted):
                if (trivial := all_or_nothing(count, total, dtype)) is not None:
                    self.cuts[row, j] = trivial
                    continue
                bracket = self.limits
                if looked_at is not None and ordered is not None:
                    bracket = self._guess(looked_at[row], ordered[row], count / total)
                self.left[row, j] = Search(count, *bracket)

    def _guess(self, looked_at: Array, ordered: Array, share: float) -> tuple[int, int]:
        """Keys between which the cut is to be expected, four to five standard deviations wide on each side.

        Values that were read at once are of one row of a matrix, say, and alike: how much shares above the cut differ from
        one such piece to the next says how far the whole sample's may be off.
        """
        m = len(ordered)
        spread = 5 * (share * (1 - share) * m) ** 0.5
        if m >= 32 * NEIGHBOURS:
            pieces = looked_at[: m - m % NEIGHBOURS].reshape(-1, NEIGHBOURS)
            above = (pieces > ordered[min(int((1 - share) * m), m - 1)]).sum(1)
            spread = max(spread, 4 * (np.square(np.diff(above)).mean() / 2 * len(pieces)) ** 0.5)
        spread += 5
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
            whole = np.int64 if self.dtype == torch.float64 else np.int32
            of_row = [[search for (of, _), search in self.left.items() if of == row] for row in range(self.rows)]
            for chunk in next(source):
                for bits, searches in zip(chunk.numpy().view(whole), of_row, strict=True):
                    for search in searches:
                        search.look(bits, self.signed)
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
