"""AGE-MOEA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polytask.shrink.search._evolution import Evolution
from polytask.shrink.search._strategy import Values, strategies


@strategies.add("age_moea")
@dataclass(frozen=True)
class AGEMOEA(Evolution):
    """Who survives goes by the estimated shape of the front: Panichella, *An adaptive evolutionary algorithm based on
    non-Euclidean geometry for many-objective optimization*, GECCO 2019.

    The first front is moved to its ideal point and scaled by the intercepts of the plane through its corners. The exponent
    p of the Minkowski norm in which it is a unit sphere comes from the point nearest to the diagonal. In this norm the
    points of the first front are taken up one by one, first the corners, then the one with the largest distance to the
    nearest two that are taken up, over its distance from the ideal point; these quotients are the scores. In later fronts a
    point's score is the inverse of its distance from the ideal point.
    """

    def scores(self, values: Values, fronts: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
        """The first front's by diversity and proximity, the others' by proximity."""
        scores = np.zeros(len(values))
        first = values[fronts[0]]
        ideal = first.min(0)
        scores[fronts[0]], p, scale = _first_front(first - ideal)
        for front in fronts[1:]:
            scores[front] = 1 / np.maximum(_norm((values[front] - ideal) / scale, p), 1e-12)
        return scores


def _first_front(points: Values) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Scores of the points of the first front, whose ideal point is 0; the exponent p, and the scale of the objectives."""
    count, objectives = points.shape
    if count <= objectives:
        scale = points.max(0)
        return np.full(count, np.inf), 1.0, np.where(scale > 0, scale, 1.0)
    corners = _corners(points)
    scale = _intercepts(points, corners)
    points = points / scale
    p = _exponent(points, corners)
    norms = _norm(points, p)
    norms[norms < 1e-8] = 1.0
    distances = np.maximum(_norm(points[:, None] - points, p), 1e-8) / norms[:, None]
    scores = np.zeros(count)
    scores[corners] = np.inf
    left = np.setdiff1d(np.arange(count), corners)
    nearest = np.sort(distances[left][:, corners], axis=1)[:, :2]  # to those that are taken up
    while len(left):
        worth = nearest.sum(1)
        best = int(worth.argmax())
        scores[left[best]] = worth[best]
        taken = left[best]
        left, nearest = np.delete(left, best), np.delete(nearest, best, axis=0)
        nearest = np.sort(np.column_stack([nearest, distances[left, taken]]), axis=1)[:, :2]
    return scores, p, scale


def _corners(points: Values) -> NDArray[np.intp]:
    """For each objective the point nearest to its axis, another one for each."""
    axes = 1e-6 + np.eye(points.shape[1])
    found: list[int] = []
    for axis in axes:
        distances = _from_line(points, axis)
        distances[found] = np.inf
        found.append(int(distances.argmin()))
    return np.array(found)


def _from_line(points: Values, direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances from a line through 0."""
    along = points @ direction / (direction @ direction)
    squares: NDArray[np.float64] = np.square(points - along[:, None] * direction).sum(1)
    return squares


def _intercepts(points: Values, corners: NDArray[np.intp]) -> NDArray[np.float64]:
    """Where the plane through the corners meets the axes; the largest values where there is no such plane."""
    largest: NDArray[np.float64] = points.max(0)
    largest[largest == 0] = 1.0
    try:
        inverse = np.linalg.solve(points[corners], np.ones(points.shape[1]))
    except np.linalg.LinAlgError:
        return largest
    return 1 / inverse if np.isfinite(inverse).all() and (inverse > 0).all() else largest


def _exponent(points: Values, corners: NDArray[np.intp]) -> float:
    """p such that the point nearest to the diagonal, taken to be on it, has the norm 1; between 0.1 and 20, or else 1."""
    objectives = points.shape[1]
    distances = _from_line(points, np.ones(objectives))
    distances[corners] = np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        p = float(np.log(objectives) / np.log(1 / points[distances.argmin()].mean()))
    return 1.0 if np.isnan(p) or p <= 0.1 else min(p, 20.0)


def _norm(vectors: Values, p: float) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.power(np.abs(vectors), p).sum(-1) ** (1 / p)
    return norms
