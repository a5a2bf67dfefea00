"""NSGA-II."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polytask.shrink.search._evolution import Evolution
from polytask.shrink.search._strategy import Values, strategies


@strategies.add("nsga2")
@dataclass(frozen=True)
class NSGA2(Evolution):
    """Of a front those survive that stand apart: Deb, Pratap, Agarwal and Meyarivan, *A fast and elitist multiobjective
    genetic algorithm: NSGA-II*, IEEE Transactions on Evolutionary Computation 6, 2002.

    A point's score is its crowding distance: over all objectives, the sum of the distances between its two neighbours in the
    front, each as a share of what the front spans; the ends of a front come first.
    """

    def scores(self, values: Values, fronts: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
        """Crowding distances, of all fronts at once."""
        inside = np.concatenate(fronts)
        rank = np.repeat(np.arange(len(fronts)), [len(front) for front in fronts])
        starts = np.flatnonzero(np.diff(rank, prepend=-1))
        ends = np.append(starts[1:], len(rank)) - 1
        scores = np.zeros(len(values))
        for column in values[inside].T:
            order = np.lexsort((column, rank))
            line = column[order]
            span = (line[ends] - line[starts])[rank]
            gaps = np.empty(len(line))
            gaps[1:-1] = line[2:] - line[:-2]
            gaps[starts] = gaps[ends] = np.inf
            # Where a front spans nothing all are alike in this objective, but for its ends.
            share = np.divide(gaps, span, out=np.where(np.isinf(gaps), np.inf, 0.0), where=span > 0)
            scores[inside[order]] += share
        return scores
