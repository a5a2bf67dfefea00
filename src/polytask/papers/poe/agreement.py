"""How far a score agrees with people: rank correlations with mean ratings, their intervals, and what one person reaches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from polytask.papers._correlation import spearman
from polytask.statistics import Interval


def turn_level(scores: ArrayLike, ratings: Sequence[Sequence[float]]) -> float:
    """Spearman's correlation over responses of the score ``(N,)`` and the mean rating, whoever wrote them.

    Args:
        scores: one for each response.
        ratings: of its raters, at least one each; their number may differ.
    """
    return spearman(scores, _means(ratings))


def by_system(scores: ArrayLike, ratings: Sequence[Sequence[float]], systems: Sequence[str]) -> float:
    """The mean of each system's own correlation: that a system is better as a whole says nothing here."""
    found = np.asarray(scores)
    rows = [[i for i, name in enumerate(systems) if name == system] for system in dict.fromkeys(systems)]
    each = [turn_level(found[of], [ratings[i] for i in of]) for of in rows if len(of) > 1]
    return sum(each) / len(each)


def interval(scores: ArrayLike, ratings: Sequence[Sequence[float]], resamples: int = 200, seed: int = 0) -> Interval:
    """`turn_level` with its 95 % bootstrap interval over responses (percentiles)."""
    found, means = np.asarray(scores), _means(ratings)
    random = np.random.default_rng(seed)
    draws = [random.integers(0, len(found), len(found)) for _ in range(resamples)]
    low, high = np.quantile([spearman(found[rows], means[rows]) for rows in draws], (0.025, 0.975))
    return Interval(spearman(found, means), float(low), float(high), 0.95)


def ceiling(ratings: Sequence[Sequence[float]]) -> float:
    """How far one rater agrees with the mean of the others: Spearman's correlation, the mean over places of raters.

    Args:
        ratings: of at least two raters for some of the responses; those with fewer are left out.
    """
    several = [row for row in ratings if len(row) > 1]
    places = range(min(len(row) for row in several))
    others = [[(sum(row) - row[place]) / (len(row) - 1) for row in several] for place in places]
    each = [spearman([row[place] for row in several], others[place]) for place in places]
    return sum(each) / len(each)


def _means(ratings: Sequence[Sequence[float]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([sum(row) / len(row) for row in ratings])
