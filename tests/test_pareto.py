"""Fronts by their definition; the hypervolume in closed form, and by counting points that are drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polytask import InputError, pareto
from polytask.pareto import fronts, hypervolume

points = arrays(float, st.tuples(st.integers(1, 6), st.just(3)), elements=st.integers(0, 4).map(float))


def dominates(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one <= other).all() and (one < other).any())


@pytest.mark.parametrize("pairs", [0, 1000])
@given(rows=points)
def test_a_front_is_what_only_earlier_fronts_dominate(pairs: int, rows: np.ndarray) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto, "PAIRS", pairs)  # both ways
        found = fronts(rows)
    left = list(range(len(rows)))
    for front in found:
        assert sorted(front) == [i for i in left if not any(dominates(rows[j], rows[i]) for j in left)]
        left = [i for i in left if i not in front]
    assert not left
    assert [front.tolist() for front in fronts(rows, 1)] == [sorted(found[0].tolist())]


def test_both_ways_find_the_same_fronts_of_many_points() -> None:
    rows = np.random.default_rng(0).random((1500, 2)).round(2)
    many = [sorted(front.tolist()) for front in fronts(rows, 200)]
    ranks = np.concatenate([np.full(len(front), rank) for rank, front in enumerate(many)])
    few = fronts(rows[np.concatenate(many)])
    assert [np.unique(ranks[front]).tolist() for front in few] == [[rank] for rank in range(len(many))]
    assert sum(map(len, many)) >= 200 > sum(map(len, many[:-1]))


def test_one_point_is_a_box_and_two_are_their_union() -> None:
    assert hypervolume([[2.0, 3.0, 4.0]], (1.0, 1.0, 1.0)) == 6.0
    assert hypervolume([[2.0, 2.0, 1.0], [1.0, 1.0, 3.0]], (0.0, 0.0, 0.0)) == 4.0 + 3.0 - 1.0
    assert hypervolume([[3.0], [5.0]], (1.0,)) == 4.0
    assert hypervolume(np.empty((0, 2)), (0.0, 0.0)) == 0.0


@given(points)
def test_it_is_the_number_of_cells_that_a_point_covers(rows: np.ndarray) -> None:
    cells = np.stack(np.meshgrid(*[np.arange(4) + 0.5] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    assert hypervolume(rows, (0.0, 0.0, 0.0)) == pytest.approx(int((cells < rows).all(2).any(1).sum()))


@given(points, points)
def test_more_points_never_cover_less_and_order_and_doubles_do_not_matter(one: np.ndarray, other: np.ndarray) -> None:
    both = np.concatenate([one, other])
    whole = hypervolume(both, (0.0, 0.0, 0.0))
    assert whole >= max(hypervolume(one, (0.0, 0.0, 0.0)), hypervolume(other, (0.0, 0.0, 0.0))) - 1e-9
    assert hypervolume(np.concatenate([both[::-1], one]), (0.0, 0.0, 0.0)) == pytest.approx(whole)
    assert hypervolume(both[:, [2, 0, 1]], (0.0, 0.0, 0.0)) == pytest.approx(whole)


def test_what_is_not_better_than_the_reference_in_everything_counts_for_nothing() -> None:
    assert hypervolume([[5.0, -1.0], [0.0, 5.0]], (0.0, 0.0)) == 0.0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="fronts: values"):
        fronts([[float("nan"), 1.0]])
    with pytest.raises(InputError, match=r"points \(2,\) and a reference \(2,\), expected \(N, D\) and \(D,\)"):
        hypervolume([1.0, 2.0], (0.0, 0.0))
    with pytest.raises(InputError, match="is not finite"):
        hypervolume([[1.0, float("nan")]], (0.0, 0.0))
