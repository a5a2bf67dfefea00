"""How much of the space of objectives a set of points covers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from polytask.errors import InputError


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
