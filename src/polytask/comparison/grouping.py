"""Which tasks to train together: the partition that the measured transfer between pairs favours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

ENUMERATED = 8
"""The most tasks for which every partition is tried (4,140 of them); beyond, groups are merged greedily."""


def group(gains: Sequence[Sequence[float]]) -> list[list[int]]:
    """The partition of tasks ``0..K-1`` with the largest total gain.

    Within a group a task is expected to gain the mean of its gains with the others, the first-order estimate of Standley et
    al., *Which tasks should be learned together in multi-task learning?*, ICML 2020, section 6; alone it gains 0. Of
    partitions that gain the same, the one with the fewest groups is taken: fewer models to keep.

    Args:
        gains: ``gains[i][j]``, what task ``i`` gains from being trained with ``j`` (0 where that is not decided).
    """
    count = len(gains)
    if count <= ENUMERATED:
        partitions = list(_partitions(list(range(count))))
        return min(partitions, key=lambda groups: (-round(total(groups, gains), 12), len(groups)))
    groups = [[i] for i in range(count)]
    while True:
        pairs = [(a, b) for a in range(len(groups)) for b in range(a)]
        merged = [[g for i, g in enumerate(groups) if i not in (a, b)] + [sorted(groups[a] + groups[b])] for a, b in pairs]
        best = max(merged, key=lambda candidate: total(candidate, gains), default=groups)
        if not pairs or total(best, gains) < total(groups, gains):
            return sorted(groups)
        groups = best


def total(groups: Sequence[Sequence[int]], gains: Sequence[Sequence[float]]) -> float:
    """The summed expected gain of all tasks under a partition."""
    return sum(
        sum(gains[i][j] for j in members if j != i) / (len(members) - 1)
        for members in groups
        if len(members) > 1
        for i in members
    )


def _partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for partition in _partitions(rest):
        for i in range(len(partition)):
            yield [[first, *partition[i]], *partition[:i], *partition[i + 1 :]]
        yield [[first], *partition]
