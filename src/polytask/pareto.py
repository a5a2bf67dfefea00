"""Points in several objectives: which of them are not beaten, and how much of the space they cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from polytask.errors import InputError

PAIRS = 1000
"""With more points than these no table of all pairs is made."""


def fronts(values: ArrayLike, count: int | None = None) -> list[np.ndarray]:
    """Indices of points by rank: those that no other dominates, those that only these dominate, and so on.

    A point dominates another if it is nowhere worse and somewhere better; here *lower* is better. Equal points share a
    front.
    Deb et al., *A fast and elitist multiobjective genetic algorithm: NSGA-II*, 2002, Section III-A.

    Args:
        values: ``(N, D)``, no NaN.
        count: stop with the front that makes so many points complete; all of them by default.

    >>> [front.tolist() for front in fronts([[1, 3], [2, 1], [2, 3], [3, 3]])]
    [[0, 1], [2], [3]]
    """
    rows = np.asarray(values, dtype=float)
    if rows.ndim != 2 or np.isnan(rows).any():
        raise InputError(f"fronts: values {rows.shape}, expected (N, D) numbers that are not NaN")
    left, found = np.arange(len(rows)), []
    wanted = len(rows) if count is None else min(count, len(rows))
    small = len(rows) <= PAIRS
    if small:
        no_worse = np.logical_and.reduce([np.less_equal.outer(column, column) for column in rows.T])
        beats = (no_worse & ~no_worse.T).astype(np.int32)
        beaten = beats.sum(0)
    while wanted > 0:
        if small:
            front = np.flatnonzero(beaten == 0)
            beaten = beaten - beats[front].sum(0)
            beaten[front] = -1
        else:
            front = left[_unbeaten(rows[left])]
            left = np.setdiff1d(left, front, assume_unique=True)
        found.append(front)
        wanted -= len(front)
    return found


def _unbeaten(rows: np.ndarray) -> np.ndarray:
    """Indices of the rows that none dominates, without a table of all pairs."""
    open_, unbeaten = np.lexsort(rows.T[::-1]), np.zeros(len(rows), dtype=bool)
    if rows.shape[1] == 2:  # unbeaten is what is lower in the second than all before, and what equals it
        ordered = rows[open_]
        lower = np.diff(np.minimum.accumulate(ordered[:, 1]), prepend=np.inf) < 0
        leaders = np.maximum.accumulate(np.where(lower, np.arange(len(rows)), 0))
        unbeaten[open_] = (ordered == ordered[leaders]).all(1)
        return np.flatnonzero(unbeaten)
    while len(open_):  # the first in the order of the objectives is dominated by none of the others
        first = rows[open_[0]]
        equal = (rows[open_] == first).all(1)
        unbeaten[open_[equal]] = True
        open_ = open_[(rows[open_] < first).any(1)]
    return np.flatnonzero(unbeaten)


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """The volume of what is better than ``reference`` and no better than one of ``points``; higher is better.

    Zitzler and Thiele, *Multiobjective evolutionary algorithms: a comparative case study and the strength Pareto approach*,
    IEEE Transactions on Evolutionary Computation 3, 1999. Exact, by slices along the last objective: for some hundreds of
    points in few objectives. It depends on the reference and on the objectives' units: fix both before looking.

    Args:
        points: ``(N, D)``, finite; those that are not better than the reference in every objective count for nothing.
        reference: ``(D,)``, the worst that counts.

    >>> hypervolume([[1.0, 3.0], [2.0, 1.0]], (0.0, 0.0))
    4.0
    """
    rows, worst = np.asarray(points, dtype=float), np.asarray(reference, dtype=float)
    if rows.ndim != 2 or worst.shape != rows.shape[1:] or not rows.shape[1]:
        raise InputError(f"hypervolume: points {rows.shape} and a reference {worst.shape}, expected (N, D) and (D,)")
    if not (np.isfinite(rows).all() and np.isfinite(worst).all()):
        raise InputError("hypervolume: a point or the reference is not finite")
    return _volume(rows[(rows > worst).all(1)] - worst)


def _volume(points: np.ndarray) -> float:
    """Of positive points, from 0."""
    if points.shape[1] == 1:
        return float(points.max(initial=0.0))
    points = points[np.argsort(-points[:, -1], kind="stable")]
    heights = [*points[:, -1].tolist(), 0.0]
    # Between two heights the slice is that of all points above it.
    slices = [(high - low, place) for place, (high, low) in enumerate(pairwise(heights), start=1) if high > low]
    return math.fsum(height * _volume(points[:place, :-1]) for height, place in slices)
