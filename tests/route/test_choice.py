"""The decision rule: special cases, ties, and what is true at every weight."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polytask.errors import InputError
from polytask.measure import hypervolume
from polytask.route import (
    Front,
    choose,
    incurred,
    order,
    plot_fronts,
    regret,
    selection_accuracy,
    soft_choice,
    sweep,
)

TABLES = st.tuples(st.integers(1, 8), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        arrays(float, shape, elements=st.integers(0, 8).map(lambda i: i / 8)),
        arrays(float, shape[1], elements=st.integers(0, 4).map(lambda i: i / 4)),
    )
)


@given(TABLES)
def test_perfect_predictions_choose_a_best_expert(table: tuple[np.ndarray, np.ndarray]) -> None:
    losses, _ = table
    chosen = choose(losses)
    assert selection_accuracy(losses, chosen) == 1 and regret(losses, chosen) == 0


@given(TABLES)
def test_costs_fall_and_losses_rise_with_the_weight(table: tuple[np.ndarray, np.ndarray]) -> None:
    losses, costs = table
    weights = [0.0, 0.25, 0.5, 1.0, 2.0, 1e6]
    front = sweep(losses, losses, costs, weights)
    assert (np.diff(front.cost) <= 0).all() and (np.diff(front.loss) >= 0).all()
    assert front.loss[0] == pytest.approx(losses.min(1).mean())
    assert front.cost[-1] == pytest.approx(costs.min())  # the cheapest, whatever the prompt
    each = [costs[choose(losses, costs, weight)] for weight in weights]
    assert (np.diff(each, axis=0) <= 0).all()  # prompt by prompt too
    exact = [(losses + weight * costs).min(1) for weight in weights]
    for weight, expected in zip(weights, exact, strict=True):
        chosen = choose(losses, costs, weight)
        np.testing.assert_array_equal(incurred(losses, chosen) + weight * costs[chosen], expected)


def test_a_constant_prediction_is_the_best_single_model() -> None:
    losses = np.random.default_rng(0).random((50, 6))
    chosen = choose(np.broadcast_to(losses.mean(0), losses.shape))
    assert set(chosen) == {losses.mean(0).argmin()}
    assert incurred(losses, chosen).mean() == pytest.approx(losses.mean(0).min())


def test_ties_go_by_cost_then_by_place() -> None:
    losses = [[1.0, 1.0, 1.0, 2.0]]
    assert choose(losses, [0.5, 0.25, 0.25, 0.0], 0.0).tolist() == [1]
    assert choose(losses).tolist() == [0]
    assert order(losses, [0.5, 0.25, 0.25, 0.0], 0.0).tolist() == [[1, 2, 0, 3]]


def test_a_random_choice_is_right_once_in_k() -> None:
    draws = np.random.default_rng(0)
    losses = draws.random((20_000, 10))
    assert selection_accuracy(losses, draws.integers(10, size=20_000)) == pytest.approx(0.1, abs=0.01)


def test_within_and_failed_experts() -> None:
    losses = np.array([[1.0, 1.005, np.nan], [2.0, 1.0, 3.0]])
    assert selection_accuracy(losses, [1, 1]) == 0.5 and selection_accuracy(losses, [1, 1], 0.01) == 1
    assert regret(losses, [1, 2]) == pytest.approx((0.005 + 2) / 2)
    assert choose(losses).tolist() == [0, 1]


def test_weights_of_each_prompt() -> None:
    assert choose([[0.0, 1.0]] * 3, [1.0, 0.0], [0.0, 0.5, 2.0]).tolist() == [0, 0, 1]


def test_a_soft_choice_hardens() -> None:
    losses = np.array([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(soft_choice(losses, 1.0).sum(), 1.0)
    np.testing.assert_allclose(np.log(soft_choice(losses, 2.0)[0, 0] / soft_choice(losses, 2.0)[0, 1]), 0.5)
    assert soft_choice(losses, 1e-3).tolist() == [[1.0, 0.0, 0.0]]


@given(arrays(float, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 5).map(float)))
def test_efficient_points_are_all_there_is_to_the_hypervolume(points: np.ndarray) -> None:
    kept = Front(np.zeros(len(points)), points[:, 0], points[:, 1]).efficient
    assert kept.any()
    reference = [-6.0] * points.shape[1]
    assert hypervolume(-points, reference) == hypervolume(-points[kept], reference)
    for point in points[~kept]:
        assert ((points[kept] <= point).all(1) & (points[kept] < point).any(1)).any()


def test_what_does_not_fit_is_refused() -> None:
    for arguments in ([[1.0]], [[[1.0]], [1.0, 2.0]], [[[1.0]], [1.0], -1.0], [[[1.0]], [1.0], np.inf]):
        with pytest.raises(InputError, match="expected"):
            choose(*arguments)


def test_the_picture() -> None:
    losses = np.random.default_rng(0).random((20, 3))
    front = sweep(losses, losses, [0.0, 0.5, 1.0])
    (axes,) = plot_fronts({"oracle": front}, {"small": (0.5, 0.0)}).axes
    assert len(axes.lines) == 3 and axes.texts[0].get_text() == "small"
