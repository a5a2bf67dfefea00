"""Who survives in NSGA-II and AGE-MOEA, and children that reach every option alike."""

from __future__ import annotations

import numpy as np
import pytest

from polytask.errors import InputError
from polytask.pareto import fronts
from polytask.shrink.search import AGEMOEA, NSGA2, Space
from polytask.shrink.search._evolution import Evolution
from polytask.shrink.search.age_moea import _first_front

BOTH: list[Evolution] = [NSGA2(), AGEMOEA()]


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_crowding_is_pymoos(objectives: int, seed: int) -> None:
    survival = pytest.importorskip("pymoo.operators.survival.rank_and_crowding.metrics")
    values = np.random.default_rng(seed).random((60, objectives))
    found = fronts(values)
    scores = NSGA2().scores(values, found)
    for front in (front for front in found if len(front) > 2):
        theirs = survival.calc_crowding_distance(values[front]) * objectives  # theirs is the mean over objectives
        assert scores[front] == pytest.approx(theirs)


def test_crowding_in_closed_form() -> None:
    values = np.array([[0.0, 4.0], [1.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
    assert NSGA2().scores(values, [np.arange(4)]).tolist() == [np.inf, 3 / 4 + 3 / 4, 3 / 4 + 2 / 4, np.inf]
    alike = np.ones((3, 2))
    assert (NSGA2().scores(alike, fronts(alike)) >= 0).all()


def minkowski(vector: np.ndarray, p: float) -> float:
    return float(sum(abs(x) ** p for x in vector) ** (1 / p))


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 5.0])
def test_the_shape_of_a_front_is_found(p: float) -> None:
    """Points of the unit sphere of a norm, one of them on the diagonal, in other units and from another ideal point."""
    shares = np.linspace(0, 1, 11)
    sphere = np.stack([shares, (1 - shares**p) ** (1 / p)], 1)
    sphere = np.concatenate([sphere, np.full((1, 2), 0.5 ** (1 / p))])
    scores, found, scale = _first_front(sphere * [1, 100])
    assert found == pytest.approx(p, rel=1e-3) and scale == pytest.approx([1, 100], rel=1e-3)
    assert np.flatnonzero(np.isinf(scores)).tolist() == [0, 10]
    values = np.concatenate([sphere + 3, sphere + 4])
    later = AGEMOEA().scores(values, fronts(values))[12:]
    assert later == pytest.approx([1 / minkowski(point + 1, found) for point in sphere], rel=1e-3)


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_diversity_over_proximity_one_by_one(seed: int, objectives: int) -> None:
    points = np.random.default_rng(seed).random((15, objectives)) + 0.01
    points /= np.linalg.norm(points, axis=1, keepdims=True) * np.random.default_rng(seed).uniform(0.99, 1.01, (15, 1))
    scores, p, scale = _first_front(points)
    taken = np.flatnonzero(np.isinf(scores)).tolist()
    assert len(taken) == objectives
    while len(taken) < 15:
        worth = {}
        for i in set(range(15)) - set(taken):
            near = sorted(minkowski((points[i] - points[j]) / scale, p) for j in taken)[:2]
            worth[i] = sum(near) / minkowski(points[i] / scale, p)
        best = max(worth, key=lambda i: worth[i])
        assert scores[best] == pytest.approx(worth[best])
        taken.append(best)


@pytest.mark.parametrize("method", BOTH, ids=lambda method: type(method).__name__)
def test_the_best_survive_and_the_ends_of_the_last_front(method: Evolution) -> None:
    values = np.random.default_rng(0).random((80, 2))
    found = fronts(values)
    for count in range(2, 80, 7):
        kept = method.survive(values, count)
        assert len(kept) == len(set(kept.tolist())) == count
        whole = 0
        for front in found:
            if whole + len(front) > count:
                assert set(kept[whole:]) <= set(front)
                break
            assert set(kept[whole : whole + len(front)]) == set(front)
            whole += len(front)
    first = found[0]
    ends = {int(first[values[first, i].argmin()]) for i in range(2)}
    assert ends <= set(method.survive(values, 2).tolist())


@pytest.mark.parametrize("values", [np.ones((5, 2)), np.array([[0.0, 1.0]]), np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 5.0]])])
@pytest.mark.parametrize("method", BOTH, ids=lambda method: type(method).__name__)
def test_points_that_are_alike_or_few(method: Evolution, values: np.ndarray) -> None:
    kept = method.survive(values, 3)
    assert len(kept) == min(3, len(values)) and len(set(kept.tolist())) == len(kept)


def test_a_mutation_is_another_option_and_each_as_likely() -> None:
    space = Space({"a": range(5), "b": range(3), "fixed": [1]})
    parents = np.tile([4, 0, 0], (10, 1))
    evolution = NSGA2(population=2000, crossover=0.0, mutation=1.0)
    children = evolution._bred(space, parents, np.random.default_rng(0))
    counts = np.bincount(children[:, 0], minlength=5) / len(children)
    assert counts == pytest.approx([0.25, 0.25, 0.25, 0.25, 0.0], abs=0.03)
    assert np.bincount(children[:, 1], minlength=3) / len(children) == pytest.approx([0.0, 0.5, 0.5], abs=0.03)
    assert (children[:, 2] == 0).all()


def test_a_child_without_mutations_has_the_genes_of_its_parents_and_better_ones_more_often() -> None:
    space = Space({f"g{i}": range(10) for i in range(6)})
    parents = np.repeat(np.arange(10)[:, None], 6, axis=1)
    children = NSGA2(population=2000, mutation=0.0)._bred(space, parents, np.random.default_rng(0))
    assert all(len(set(child.tolist())) <= 2 for child in children)
    share = np.bincount(children.ravel(), minlength=10) / children.size
    assert share == pytest.approx([(2 * (10 - i) - 1) / 100 for i in range(10)], abs=0.01)  # the better of two


def test_settings_that_cannot_be() -> None:
    for settings in ({"population": 1}, {"crossover": 1.5}, {"mutation": -0.1}):
        with pytest.raises(InputError, match="expected a population of at least 2"):
            NSGA2(**settings)  # type: ignore[arg-type]
