"""The solvers against their optimality conditions, over Gramians that are hard in each way we know."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from polytask.balance.solvers import (
    Array,
    cosines,
    fair,
    hull_is_zero,
    min_norm,
    nonnegative,
    nonnegative_columns,
    projections,
    raise_until,
)

KINDS = ("plain", "conflicting", "aligned", "dependent", "repeated")


def jacobian(seed: int, tasks: int, kind: str, decades: float) -> Array:
    """Task gradients ``(K, P)`` of a kind, with lengths spread over a number of decades on either side of 1."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((tasks, max(tasks // 2, 2) if kind == "dependent" else 2 * tasks))
    if kind == "conflicting":
        rows -= 0.99 * rows.mean(0)
    if kind == "aligned":
        rows += 0.5
    if kind == "repeated":
        rows = rows[rng.integers(0, max(tasks // 2, 1), tasks)]
    return rows * 10 ** rng.uniform(-decades, decades, (tasks, 1))


def problems() -> st.SearchStrategy[Array]:
    return st.builds(
        jacobian,
        st.integers(0, 2**31),
        st.integers(1, 12),
        st.sampled_from(KINDS),
        st.sampled_from([0.0, 1.0, 4.0]),
    )


def gramian(rows: Array) -> torch.Tensor:
    return torch.from_numpy(rows @ rows.T)


@given(problems())
def test_cosines_and_norms_make_the_gramian(rows: Array) -> None:
    norms, matrix = cosines(gramian(rows))
    np.testing.assert_allclose(norms[:, None] * matrix * norms, rows @ rows.T, rtol=1e-12, atol=1e-300)


def test_a_gradient_that_vanishes_is_orthogonal_to_all() -> None:
    norms, matrix = cosines(torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert norms.tolist() == [2, 0] and matrix.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("solve", [lambda m: nonnegative_columns(m, -m), projections], ids=["columns", "projections"])
@settings(max_examples=300)
@given(rows=problems())
def test_columns_meet_the_optimality_conditions(solve: Callable[[Array], Array], rows: Array) -> None:
    _, matrix = cosines(gramian(rows))
    y = solve(matrix)
    slope = matrix @ y + matrix
    rounding = 1e-9 + 1e-14 * np.abs(matrix) @ y
    assert (y >= 0).all() and (slope >= -rounding).all()
    assert (np.abs(slope * y) <= rounding * (1 + y)).all()


@given(problems(), st.integers(0, 2**31))
def test_one_column_is_that_of_all_and_of_another_solver(rows: Array, seed: int) -> None:
    _, matrix = cosines(gramian(rows))
    linear = matrix @ np.random.default_rng(seed).standard_normal(len(matrix))
    y = nonnegative(matrix, linear)
    together = nonnegative_columns(matrix, np.stack([linear, -linear], 1))[:, 0]
    values, vectors = np.linalg.eigh(matrix)
    root = np.sqrt(np.maximum(values, 1e-13))
    other, _ = nnls(root[:, None] * vectors.T, vectors.T @ linear / root, maxiter=1000)
    # The solution need not be unique, where its image is.
    np.testing.assert_allclose(matrix @ y, matrix @ together, atol=1e-8 * np.abs(linear).max())
    np.testing.assert_allclose(matrix @ y, matrix @ other, atol=1e-5 * (1 + np.abs(linear).max()))


def test_nonnegative_is_the_best_of_all_sets_of_positive_entries() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        _, matrix = cosines(gramian(rng.standard_normal((3, 4))))
        linear = rng.standard_normal(3)
        values = [0.0]
        for free in itertools.product([False, True], repeat=3):
            y, at = np.zeros(3), np.array(free)
            y[at] = np.linalg.solve(matrix[np.ix_(at, at)], linear[at])
            if (y >= 0).all():
                values.append(float(y @ matrix @ y / 2 - linear @ y))
        y = nonnegative(matrix, linear)
        assert y @ matrix @ y / 2 - linear @ y == pytest.approx(min(values), abs=1e-12)


@settings(max_examples=300)
@given(problems())
def test_min_norm_meets_the_optimality_conditions(rows: Array) -> None:
    g = rows @ rows.T
    norms, matrix = cosines(torch.from_numpy(g))
    w = min_norm(norms, matrix)
    assert (w >= 0).all() and w.sum() == pytest.approx(1, abs=1e-12)
    products, squared = g @ w, w @ g @ w
    # g_k^T d >= |d|^2 for all tasks, with equality where w > 0, up to the rounding of both sides
    rounding = 1e-9 * norms * (norms @ w) + 1e-14 * (norms @ w) ** 2
    assert (products >= squared - rounding).all()
    assert (w * np.abs(products - squared) <= w * rounding + 1e-15 * (norms @ w) ** 2).all()


@given(st.floats(0, np.pi), st.floats(-4, 4))
def test_min_norm_of_two_is_the_foot_of_the_perpendicular(angle: float, decade: float) -> None:
    rows = np.array([[1.0, 0.0], [10**decade * np.cos(angle), 10**decade * np.sin(angle)]])
    g = rows @ rows.T
    w = min_norm(*cosines(torch.from_numpy(g)))
    apart = g[0, 0] + g[1, 1] - 2 * g[0, 1]
    share = 1.0 if apart == 0 else float(np.clip((g[1, 1] - g[0, 1]) / apart, 0, 1))
    expected = np.array([share, 1 - share])
    assert np.linalg.norm(w @ rows) <= np.linalg.norm(expected @ rows) + 1e-7 * np.linalg.norm(rows, axis=1) @ expected


def test_min_norm_of_opposite_gradients_of_any_length_is_zero() -> None:
    rows = np.array([[1e4, 0.0], [-1e4, 0.0], [0.0, 1e-4]])
    w = min_norm(*cosines(gramian(rows)))
    np.testing.assert_allclose(w, [0.5, 0.5, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "zero"),
    [([[1.0, 0], [0, 1]], False), ([[1.0, 0], [-3, 0]], True), ([[1.0, 0], [-1, 1e-3]], False), ([[1.0, 0]], False)],
)
def test_zero_is_in_the_hull_only_where_it_is(rows: list[list[float]], zero: bool) -> None:
    assert hull_is_zero(cosines(gramian(np.array(rows)))[1])[1] is zero


@settings(max_examples=300)
@given(problems(), st.sampled_from([0.25, 0.5, 1.0, 1.7, 2.0, 5.0]))
def test_fair_solves_its_equation(rows: Array, alpha: float) -> None:
    norms, matrix = cosines(gramian(rows))
    if hull_is_zero(matrix)[1]:
        return
    pull = (norms / norms.max()) ** (1 / alpha - 1)
    y = fair(matrix, pull, 1 / alpha)
    force = pull * y ** (-1 / alpha)
    rounding = 1e-9 + 1e-14 * (np.abs(matrix) @ y) / force
    assert (y > 0).all() and (np.abs(matrix @ y / force - 1) <= rounding).all()


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_fair_stays_finite_where_there_is_no_solution(power: float) -> None:
    _, matrix = cosines(gramian(np.array([[1.0, 0], [-1, 0], [0, 1]])))
    y = fair(matrix, np.ones(3), power)
    assert np.isfinite(y).all() and (y > 0).all()
    np.testing.assert_allclose((matrix @ y)[:2], 0, atol=1e-3)
    assert y[2] == pytest.approx(1, abs=1e-6)


@settings(max_examples=300)
@given(problems(), st.floats(0.05, 3), st.booleans())
def test_raised_solutions_meet_the_conditions_and_the_target(rows: Array, target: float, squared: bool) -> None:
    norms, matrix = cosines(gramian(rows))
    length = norms / norms.max()
    base = matrix @ length / len(length)
    if squared:
        target *= float(length @ base)
    top = float(length.min()) * (2 * length.max() * max(target, 1) + 10 * target**0.5)
    y = raise_until(matrix, 1 / length, base, top, target, squared)
    assert np.isfinite(y).all() and (y >= 0).all()
    size = float(y @ matrix @ y) if squared else float((y / length).sum())
    if hull_is_zero(matrix)[1]:
        assert size <= target * (1 + 1e-6) + 1e-9
    else:
        assert size == pytest.approx(target, rel=1e-6, abs=1e-12)
    gain = length * (matrix @ y + base)  # the products of all gradients with the step
    least = gain[y > 0].mean() if (y > 0).any() else gain.min()
    assert (gain >= least - 1e-9 * length * (1 + y.sum())).all()
    assert (np.abs(gain - least)[y > 0] <= 1e-9 * (1 + y.sum())).all()


@pytest.mark.parametrize("tasks", [32, 128])
@pytest.mark.parametrize("kind", ["plain", "conflicting", "aligned", "dependent"])
def test_many_tasks(tasks: int, kind: str) -> None:
    rows = jacobian(0, tasks, kind, 4.0)
    norms, matrix = cosines(gramian(rows))
    y = projections(matrix)
    slope = matrix @ y + matrix
    assert y.min() >= 0 and slope.min() >= -1e-9 and np.abs(slope * y).max() <= 1e-9
    w = min_norm(norms, matrix)
    g = rows @ rows.T
    assert (g @ w >= w @ g @ w - 1e-9 * norms * (norms @ w)).all()
    if kind == "dependent":
        return  # no step helps all
    solution = fair(matrix, np.ones(tasks), 1.0)
    np.testing.assert_allclose(solution * (matrix @ solution), 1, rtol=1e-9)
