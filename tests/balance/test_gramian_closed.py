"""Gramian weightings in closed form or by simple loops, against the gradients themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchjd.aggregation as peer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.balance import GramianWeighting, aligned, config, gradvac, imtl_g, krum, pcgrad
from polytask.balance._orders import random_orders
from polytask.balance._simplex import descend, project
from polytask.balance.aligned import AlignedMTL
from polytask.balance.config import ConFIG
from polytask.balance.gradvac import GradVac
from polytask.balance.imtl_g import IMTLG
from polytask.balance.krum import Krum
from polytask.balance.modo import MoDo
from polytask.balance.pcgrad import PCGrad
from polytask.balance.random import RandomWeights
from polytask.errors import InputError
from polytask.testing import check_balancer

MAKERS: dict[str, Callable[[], GramianWeighting]] = {
    "pcgrad": PCGrad,
    "pcgrad of the mean": lambda: PCGrad("mean"),
    "gradvac": GradVac,
    "gradvac at once": lambda: GradVac(beta=1),
    "imtl_g": IMTLG,
    "aligned": AlignedMTL,
    "aligned to the median": lambda: AlignedMTL("median"),
    "aligned to the rmse": lambda: AlignedMTL("rmse"),
    "config": ConFIG,
    "krum": Krum,
    "multi-krum": lambda: Krum(byzantine=0, selected=2),
    "modo": MoDo,
    "modo in long steps": lambda: MoDo(gamma=10, rho=0),
    "random_weights": RandomWeights,
}
ORDERLESS = ("imtl_g", "aligned", "aligned to the median", "aligned to the rmse", "config", "krum", "multi-krum", "modo")


def rows(seed: int, tasks: int, spread: float = 0.0, conflict: float = 0.0) -> Tensor:
    """Task gradients ``(K, 2 K + 1)``, float64, with norms over ``spread`` decades."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tasks, 2 * tasks + 1, generator=generator, dtype=torch.float64)
    values = values - conflict * values.mean(0)
    return values * 10 ** (spread * (torch.rand(tasks, 1, generator=generator, dtype=torch.float64) - 0.5))


def problems(most: int = 10, fewest: int = 1, spread: float = 2.0) -> st.SearchStrategy[Tensor]:
    return st.builds(
        rows, st.integers(0, 2**31), st.integers(fewest, most), st.sampled_from([0.0, spread]), st.sampled_from([0.0, 0.95])
    )


def prepared(make: Callable[[], GramianWeighting], tasks: int) -> tuple[GramianWeighting, dict[str, float]]:
    balancer = make()
    names = [f"t{i}" for i in range(tasks)]
    balancer.prepare(names)
    return balancer, dict.fromkeys(names, 1.0)


def same(found: Tensor, expected: Tensor, jacobian: Tensor) -> None:
    """Two vectors of weights make the same step."""
    step = expected @ jacobian
    torch.testing.assert_close(found @ jacobian, step, rtol=1e-6, atol=1e-6 * float(step.norm()) + 1e-12)


# All of them


@pytest.mark.parametrize("name", MAKERS)
def test_each_keeps_the_contract(name: str) -> None:
    check_balancer(MAKERS[name])


@pytest.mark.parametrize("name", MAKERS)
def test_one_task_gets_its_gradient(name: str) -> None:
    balancer, losses = prepared(MAKERS[name], 1)
    for square in (4.0, 1e-30, 1e30):
        found = balancer.weigh(torch.tensor([[square]], dtype=torch.float64), losses)
        torch.testing.assert_close(found, torch.ones(1, dtype=torch.float64))


def hard() -> dict[str, Tensor]:
    base = rows(0, 5)
    zero_row, far, equal, lengths = base.clone(), base.clone(), base[:1].expand(5, -1), torch.logspace(-15, 15, 5)
    zero_row[2] = 0
    far[1] = -far[0]
    jacobians = {
        "zero": base * 0,
        "tiny": base * 1e-15,
        "huge": base * 1e15,
        "equal": equal,
        "parallel": equal * lengths.double()[:, None],
        "two opposite": base[:1] * torch.tensor([[1.0], [-1.0]]),
        "opposite of all lengths": base[:1] * torch.tensor([[1.0], [-1e-9], [1e9], [-1.0]], dtype=torch.float64),
        "opposite among others": far,
        "a zero row": zero_row,
        "one that is not zero": base * torch.eye(5, dtype=torch.float64)[0][:, None],
        "rank two": base[:, :2],
        "lengths over thirty decades": base * lengths.double()[:, None],
        "a sum of the others": torch.cat([base, -base.sum(0, keepdim=True)]),
    }
    return {name: j @ j.T for name, j in jacobians.items()}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", hard())
def test_weights_are_finite_on_hard_gramians(name: str, kind: str) -> None:
    gramian = hard()[kind]
    balancer, losses = prepared(MAKERS[name], len(gramian))
    for seed in range(5):
        torch.manual_seed(seed)
        weights = balancer.weigh(gramian, losses)
        assert weights.shape == (len(gramian),) and bool(weights.isfinite().all())
        assert bool((weights @ gramian @ weights).isfinite())


@pytest.mark.parametrize("name", MAKERS)
def test_weights_are_finite_when_tasks_that_agreed_turn_against_one_another(name: str) -> None:
    balancer, losses = prepared(MAKERS[name], 12)
    together = torch.ones(12, 12, dtype=torch.float64)
    apart = rows(3, 12, conflict=1.0)
    for _ in range(60):
        balancer.weigh(together, losses)
    for _ in range(3):
        weights = balancer.weigh(apart @ apart.T, losses)
        assert float((weights @ apart).norm()) <= 12 * (1 + 100 * 11) * float(apart.norm(dim=1).max())


@pytest.mark.parametrize("name", ORDERLESS)
@given(jacobian=problems(fewest=2), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_the_order_of_tasks_means_nothing(name: str, jacobian: Tensor, seed: int) -> None:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(jacobian)))
    first, losses = prepared(MAKERS[name], len(jacobian))
    other, _ = prepared(MAKERS[name], len(jacobian))
    names = list(losses)
    weights = first.weigh(jacobian @ jacobian.T, losses)
    again = other.weigh(jacobian[order] @ jacobian[order].T, {names[i]: 1.0 for i in order})
    same(again, weights[order], jacobian[order])


@pytest.mark.parametrize("name", [name for name in MAKERS if "modo" not in name])
@given(jacobian=problems(), power=st.integers(-20, 20))
@settings(max_examples=30)
def test_the_step_grows_with_the_gradients(name: str, jacobian: Tensor, power: int) -> None:
    balancer, losses = prepared(MAKERS[name], len(jacobian))
    gramian = jacobian @ jacobian.T
    torch.manual_seed(0)
    weights = balancer.weigh(gramian, losses)
    balancer.prepare(list(losses))
    torch.manual_seed(0)
    same(balancer.weigh(gramian * 4.0**power, losses), weights, jacobian)


def parallel(seed: int) -> tuple[Tensor, Tensor]:
    """Gradients of one direction and several lengths, and their inner products, in single precision."""
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.tensor([1.0, 3.0, 1 / 3, 7.0, 0.1])[:, None] * torch.randn(10_000, generator=generator)
    return jacobian.double(), (jacobian @ jacobian.T).double()


@pytest.mark.parametrize("seed", range(10))
def test_rounding_of_inner_products_makes_no_directions(seed: int) -> None:
    jacobian, gramian = parallel(seed)
    norms = jacobian.norm(dim=1)
    for mode in ("min", "median", "rmse"):
        step, expected = aligned.weights(gramian, mode) @ jacobian, norms.sum()
        assert float(step.norm()) == pytest.approx(float(expected) / 5, rel=1e-3)
    torch.testing.assert_close(config.weights(gramian) @ jacobian, jacobian.sum(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(imtl_g.weights(gramian), (1 / norms) / (1 / norms).sum(), rtol=1e-3, atol=1e-6)


# PCGrad


def surgery(jacobian: Tensor, orders: Any) -> Tensor:
    """Algorithm 1, on the gradients."""
    total = torch.zeros_like(jacobian[0])
    for i, others in enumerate(orders):
        left = jacobian[i].clone()
        for j in others:
            product = left @ jacobian[j]
            if product < 0:
                left -= product / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += left
    return total


@given(problems(), st.integers(0, 2**31))
def test_pcgrad_projects_the_gradients_one_after_the_other(jacobian: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    orders = random_orders(len(jacobian))
    step, expected = pcgrad.weights(jacobian @ jacobian.T, orders) @ jacobian, surgery(jacobian, orders)
    torch.testing.assert_close(step, expected, rtol=1e-8, atol=1e-9 * float(jacobian.norm()))


@given(problems(), st.integers(0, 2**31))
@settings(max_examples=30)
def test_pcgrad_is_that_of_torchjd_in_the_same_orders(jacobian: Tensor, seed: int) -> None:
    count = len(jacobian)
    torch.manual_seed(seed)
    drawn = [[int(j) for j in torch.randperm(count) if j != i] for i in range(count)]
    torch.manual_seed(seed)
    expected = peer.PCGrad()(jacobian)
    step = pcgrad.weights(jacobian @ jacobian.T, np.array(drawn, dtype=np.int64).reshape(count, count - 1)) @ jacobian
    torch.testing.assert_close(step, expected, rtol=1e-6, atol=1e-6 * float(jacobian.norm()))


@given(problems(most=2, fewest=2))
def test_pcgrad_of_two_tasks_conflicts_with_neither(jacobian: Tensor) -> None:
    g = jacobian @ jacobian.T
    weights = pcgrad.weights(g, random_orders(2))
    conflict = min(float(g[0, 1]), 0.0)
    torch.testing.assert_close(weights, torch.tensor([1 - conflict / g[0, 0], 1 - conflict / g[1, 1]], dtype=torch.float64))
    assert bool((g @ weights >= -1e-9 * g.diagonal()).all())


def test_pcgrad_meets_the_others_in_every_order() -> None:
    torch.manual_seed(0)
    seen = {tuple(map(tuple, random_orders(3).tolist())) for _ in range(300)}
    assert len(seen) == 8
    assert all(set(row) == {0, 1, 2} - {i} for orders in seen for i, row in enumerate(orders))


def test_pcgrad_of_tasks_without_conflict_is_the_sum_or_the_mean() -> None:
    gramian = torch.ones(4, 4, dtype=torch.float64) + torch.eye(4, dtype=torch.float64)
    losses = dict.fromkeys("abcd", 1.0)
    assert PCGrad().weigh(gramian, losses).tolist() == [1, 1, 1, 1]
    assert PCGrad("mean").weigh(gramian, losses).tolist() == [0.25] * 4
    assert (PCGrad().scale, PCGrad("mean").scale) == ("sum", "mean")
    with pytest.raises(InputError, match="reduction 'max': expected 'sum' or 'mean'"):
        PCGrad("max")


# GradVac


def vaccine(jacobian: Tensor, orders: Any, targets: Tensor, beta: float) -> Tensor:
    """The changed gradients in the sum, by the paper's equation; ``targets`` move in place."""
    total = torch.zeros_like(jacobian[0])
    for i, others in enumerate(orders):
        left = jacobian[i].clone()
        for j in others:
            g, t = jacobian[j], float(targets[i, j])
            c = float(left @ g / (left.norm() * g.norm()))
            if c < t:
                left += left.norm() * (t * (1 - c**2) ** 0.5 - c * (1 - t**2) ** 0.5) / (g.norm() * (1 - t**2) ** 0.5) * g
            targets[i, j] += beta * (c - t)
        total += left
    return total


@given(problems(fewest=2), st.integers(0, 2**31), st.sampled_from([0.01, 0.5, 0.9]))
@settings(max_examples=50)
def test_gradvac_turns_the_gradients_one_after_the_other(jacobian: Tensor, seed: int, beta: float) -> None:
    torch.manual_seed(seed)
    targets = np.zeros((len(jacobian), len(jacobian)))
    expected_targets = torch.zeros(len(jacobian), len(jacobian), dtype=torch.float64)
    for scale in (1.0, 3.0, 0.1):
        noisy = scale * jacobian + 0.3 * jacobian.norm(dim=1, keepdim=True) * rows(seed % 99, len(jacobian))
        orders = random_orders(len(jacobian))
        weights, targets = gradvac.weights(noisy @ noisy.T, orders, targets, beta)
        expected = vaccine(noisy, orders, expected_targets, beta)
        torch.testing.assert_close(weights @ noisy, expected, rtol=1e-6, atol=1e-7 * float(expected.norm() + noisy.norm()))
        torch.testing.assert_close(torch.from_numpy(targets), expected_targets, rtol=1e-6, atol=1e-7)


def test_gradvac_is_that_of_torchjd_in_the_same_orders() -> None:
    aggregator, targets = peer.GradVac(beta=0.5), np.zeros((6, 6))
    for seed in range(5):
        jacobian = rows(seed, 6, conflict=0.8)
        torch.manual_seed(seed)
        drawn = [np.array([j for j in range(6) if j != i])[torch.randperm(5).numpy()] for i in range(6)]
        torch.manual_seed(seed)
        expected = aggregator(jacobian)
        weights, targets = gradvac.weights(jacobian @ jacobian.T, np.stack(drawn), targets, 0.5)
        torch.testing.assert_close(weights @ jacobian, expected, rtol=1e-6, atol=1e-6)


@given(problems(fewest=2))
@settings(max_examples=30)
def test_gradvac_starts_as_pcgrad(jacobian: Tensor) -> None:
    orders, gramian = random_orders(len(jacobian)), jacobian @ jacobian.T
    weights, _ = gradvac.weights(gramian, orders, np.zeros(gramian.shape), 0.5)
    same(weights, pcgrad.weights(gramian, orders), jacobian)


@given(st.floats(-0.99, 0.99), st.floats(-0.99, 0.99))
def test_gradvac_brings_two_gradients_to_their_target(cosine: float, target: float) -> None:
    jacobian = torch.tensor([[3.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float64)
    targets = np.full((2, 2), -1.0)
    targets[0, 1] = target
    weights, moved = gradvac.weights(jacobian @ jacobian.T, np.array([[1], [0]]), targets, 0.25)
    left = (weights - torch.tensor([0.0, 1.0])) @ jacobian
    found = float(left @ jacobian[1] / left.norm())
    assert found == pytest.approx(max(cosine, target), abs=1e-9)
    assert moved[0, 1] == pytest.approx(0.75 * target + 0.25 * cosine)


def test_gradvac_keeps_the_targets_of_tasks_that_are_absent() -> None:
    balancer = GradVac()
    balancer.prepare(["a", "b", "c"])
    jacobian = rows(1, 2)
    balancer.weigh(jacobian @ jacobian.T, {"c": 1.0, "a": 1.0})
    cosine = float(torch.nn.functional.cosine_similarity(jacobian[0], jacobian[1], dim=0))
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[0, 2] = expected[2, 0] = cosine / 2
    torch.testing.assert_close(balancer.targets, expected)


def test_gradvac_adds_nothing_of_a_gradient_that_vanishes() -> None:
    jacobian = rows(0, 3)
    with_zero = torch.cat([jacobian, torch.zeros_like(jacobian[:1])])
    orders = np.array([[3, 1, 2], [0, 3, 2], [1, 0, 3], [0, 1, 2]])
    weights, targets = gradvac.weights(with_zero @ with_zero.T, orders, np.full((4, 4), 0.5), 0.1)
    without, moved = gradvac.weights(jacobian @ jacobian.T, np.array([[1, 2], [0, 2], [1, 0]]), np.full((3, 3), 0.5), 0.1)
    torch.testing.assert_close(weights[:3], without)
    np.testing.assert_allclose(targets[:3, :3], moved)
    np.testing.assert_allclose(targets[:3, 3], 0.45)


def test_gradvac_does_not_take_rounding_for_conflict() -> None:
    balancer, losses = prepared(GradVac, 6)
    for seed in range(40):
        noise = 1e-7 * rows(seed, 6)[:, :6]
        weights = balancer.weigh(torch.ones(6, 6, dtype=torch.float64) + noise + noise.T, losses)
        torch.testing.assert_close(weights, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-6)


# IMTL-G


@given(problems(fewest=2))
def test_imtl_g_projects_equally_onto_all_gradients(jacobian: Tensor) -> None:
    weights = imtl_g.weights(jacobian @ jacobian.T)
    step = weights @ jacobian
    onto = jacobian @ step / jacobian.norm(dim=1)
    torch.testing.assert_close(onto, onto.mean().expand_as(onto), rtol=1e-6, atol=1e-9 * float(step.norm()))
    assert float(onto.mean()) > 0
    assert float(step.norm()) <= 10.000001 * float(jacobian.norm(dim=1).max())
    assert float(weights.sum()) <= 1 + 1e-9


@given(problems(fewest=2, spread=1.0))
def test_imtl_g_is_that_of_torchjd_where_weights_do_not_cancel(jacobian: Tensor) -> None:
    expected = peer.IMTLG().gramian_weighting(jacobian @ jacobian.T)
    if float(expected.abs().sum()) < 10:
        same(imtl_g.weights(jacobian @ jacobian.T), expected, jacobian)


@given(problems(most=2, fewest=2))
def test_imtl_g_of_two_tasks_weighs_by_the_other_norm(jacobian: Tensor) -> None:
    first, second = jacobian.norm(dim=1)
    expected = torch.stack([second, first]) / (first + second)
    torch.testing.assert_close(imtl_g.weights(jacobian @ jacobian.T), expected)


def test_imtl_g_never_steps_against_all_tasks() -> None:
    # The solution has a negative entry, on the shortest gradient: the paper's weights, brought to a sum of 1, turn the step.
    directions = torch.tensor([[1.0, 0.2, 0.0], [1.0, -0.2, 0.0], [1.0, 0.0, 0.05]], dtype=torch.float64)
    jacobian = torch.nn.functional.normalize(directions) * torch.tensor([[1.0], [1.0], [1.0]], dtype=torch.float64)
    y = torch.linalg.solve(jacobian @ jacobian.T, torch.ones(3, dtype=torch.float64))
    shortest = int(y.argmin())
    assert y[shortest] < 0
    jacobian[shortest] *= 1e-3
    assert peer.IMTLG().gramian_weighting(jacobian @ jacobian.T) @ jacobian @ jacobian[0] < 0
    assert bool((jacobian @ (imtl_g.weights(jacobian @ jacobian.T) @ jacobian) > 0).all())


def test_imtl_g_of_equal_and_of_vanishing_tasks_is_that_of_the_others() -> None:
    jacobian = rows(0, 3)
    repeated = torch.cat([jacobian, jacobian[:1], torch.zeros_like(jacobian[:1])])
    weights = imtl_g.weights(repeated @ repeated.T)
    torch.testing.assert_close(weights @ repeated, imtl_g.weights(jacobian @ jacobian.T) @ jacobian)
    assert weights[0] == pytest.approx(float(weights[3])) and weights[4] == 0
    assert imtl_g.weights(torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)).tolist() == [0, 0]


# Aligned-MTL


@given(problems(fewest=2), st.sampled_from(["min", "median", "rmse"]))
def test_aligned_is_that_of_torchjd(jacobian: Tensor, mode: str) -> None:
    expected = peer.AlignedMTL(scale_mode=mode)(jacobian)  # type: ignore[arg-type]
    step = aligned.weights(jacobian @ jacobian.T, mode) @ jacobian
    torch.testing.assert_close(step, expected, rtol=1e-6, atol=1e-6 * float(expected.norm()))


@given(problems(fewest=2))
def test_aligned_gradients_are_orthogonal_and_of_the_least_singular_length(jacobian: Tensor) -> None:
    """One preference after the other gives the aligned gradients: their condition number is 1."""
    gramian = jacobian @ jacobian.T
    each = torch.stack([aligned.weights(gramian, "min", e) @ jacobian for e in np.eye(len(jacobian))])
    least = torch.linalg.svdvals(jacobian)[-1]
    expected = least**2 * torch.eye(len(jacobian), dtype=torch.float64)
    torch.testing.assert_close(each @ each.T, expected, rtol=1e-6, atol=1e-6 * float(least**2))


def test_aligned_prefers_by_name() -> None:
    jacobian = rows(0, 3)
    balancer = AlignedMTL(preference={"b": 2.0})
    balancer.prepare(["a", "b", "c"])
    expected = peer.AlignedMTL(pref_vector=torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4)(jacobian)
    weights = balancer.weigh(jacobian[[1, 0, 2]] @ jacobian[[1, 0, 2]].T, {"b": 1.0, "a": 1.0, "c": 1.0})
    torch.testing.assert_close(weights @ jacobian[[1, 0, 2]], expected)
    with pytest.raises(InputError, match="unknown task 'd'"):
        AlignedMTL(preference={"d": 1.0}).prepare(["a", "b"])
    with pytest.raises(InputError, match="scale_mode 'mean': expected one of min, median, rmse"):
        AlignedMTL("mean")


# ConFIG


@given(problems(fewest=2))
def test_config_has_one_positive_cosine_with_all_gradients(jacobian: Tensor) -> None:
    step = config.weights(jacobian @ jacobian.T) @ jacobian
    cosines = torch.nn.functional.cosine_similarity(step[None], jacobian)
    assert float(cosines.min()) > 0
    torch.testing.assert_close(cosines, cosines.mean().expand_as(cosines), rtol=1e-6, atol=1e-9)
    projections = (jacobian @ step / step.norm()).sum()
    torch.testing.assert_close(step.norm(), projections, rtol=1e-9, atol=0)


@given(problems(fewest=2), st.booleans())
def test_config_is_that_of_torchjd(jacobian: Tensor, prefer: bool) -> None:
    preference = torch.linspace(1, 2, len(jacobian), dtype=torch.float64) if prefer else None
    expected = peer.ConFIG(pref_vector=preference)(jacobian)
    weights = config.weights(jacobian @ jacobian.T, None if preference is None else preference.numpy())
    torch.testing.assert_close(weights @ jacobian, expected, rtol=1e-6, atol=1e-6 * float(expected.norm()))


def test_config_with_twice_the_preference_has_twice_the_cosine() -> None:
    jacobian = rows(0, 3, spread=2)
    balancer = ConFIG({"b": 2.0})
    balancer.prepare(["a", "b", "c"])
    step = balancer.weigh(jacobian @ jacobian.T, {"a": 1.0, "b": 1.0, "c": 1.0}) @ jacobian
    cosines = torch.nn.functional.cosine_similarity(step[None], jacobian)
    torch.testing.assert_close(cosines / cosines[0], torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))


# Krum


def nearest_by_distance(jacobian: Tensor, byzantine: int, selected: int) -> Tensor:
    scores = []
    for i, row in enumerate(jacobian):
        others = sorted(float((row - other).square().sum()) for j, other in enumerate(jacobian) if j != i)
        scores.append(sum(others[: len(jacobian) - byzantine - 2]))
    best = sorted(range(len(jacobian)), key=scores.__getitem__)[:selected]
    return jacobian[best].mean(0)


@given(problems(fewest=6), st.integers(0, 2), st.integers(1, 3))
def test_krum_averages_the_gradients_of_least_score(jacobian: Tensor, byzantine: int, selected: int) -> None:
    step = krum.weights(jacobian @ jacobian.T, byzantine, selected) @ jacobian
    torch.testing.assert_close(step, nearest_by_distance(jacobian, byzantine, selected))


@given(st.floats(10, 1e12), st.permutations(range(6)))
def test_krum_is_that_of_torchjd_for_a_cluster_and_one_far_away(far: float, order: list[int]) -> None:
    """torchjd adds up distances, the paper their squares; both select the middle of the cluster."""
    away = torch.diag(torch.tensor([0.1, 1, 1, 1, 1, far], dtype=torch.float64))
    jacobian = (1 + away)[order]
    gramian = jacobian @ jacobian.T
    expected = torch.tensor([float(i == 0) for i in order], dtype=torch.float64)
    torch.testing.assert_close(krum.weights(gramian, 1, 1), expected)
    torch.testing.assert_close(peer.Krum(n_byzantine=1).gramian_weighting(gramian), expected)


@given(problems(fewest=7), st.integers(0, 6), st.sampled_from([1e3, 1e9, 1e15]))
def test_krum_selects_no_gradient_from_far_away(jacobian: Tensor, byzantine: int, far: float) -> None:
    jacobian[byzantine] = far * jacobian.norm()
    assert krum.weights(jacobian @ jacobian.T, 1, 1)[byzantine] == 0


def test_krum_takes_all_that_tie() -> None:
    two = rows(0, 2)
    assert krum.weights(two @ two.T, 1, 1).tolist() == [0.5, 0.5]
    pair = torch.tensor([[0.0, 0], [0, 1], [5, 5], [-9, 9]], dtype=torch.float64)
    assert krum.weights(pair @ pair.T, 1, 1).tolist() == [0.5, 0.5, 0, 0]
    for settings_ in ({"byzantine": -1}, {"selected": 0}):
        with pytest.raises(InputError, match="expected a number of tasks"):
            Krum(**settings_)


# MoDo, and weights on the simplex


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_the_projection_is_the_nearest_point_of_the_simplex(values: list[float]) -> None:
    given_ = torch.tensor(values, dtype=torch.float64)
    found = project(given_)
    assert float(found.sum()) == pytest.approx(1) and float(found.min()) >= 0
    # Nearest: no vertex is on the side of what was projected.
    assert float(((given_ - found) @ (torch.eye(len(values), dtype=torch.float64) - found).T).max()) <= 1e-8 * (
        1 + float(given_.abs().max())
    )


def test_modo_is_that_of_torchjd_step_after_step() -> None:
    weighting = peer.MoDoWeighting(gamma=0.05, rho=0.1)
    balancer, losses = prepared(lambda: MoDo(gamma=0.05, rho=0.1), 5)
    for seed in range(8):
        jacobian = rows(seed, 5)
        gramian = jacobian @ jacobian.T
        torch.testing.assert_close(balancer.weigh(gramian, losses), weighting(gramian), rtol=1e-9, atol=1e-12)


def test_modo_comes_to_the_weights_of_the_shortest_step() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    for _ in range(500):
        weights = descend(weights, jacobian @ jacobian.T, 0.05, 0.0)
    torch.testing.assert_close(weights, torch.tensor([0.8, 0.2], dtype=torch.float64))


def test_modo_moves_only_the_weights_of_tasks_that_are_there() -> None:
    balancer = MoDo(gamma=0.1, rho=0.0)
    balancer.prepare(["a", "b", "c"])
    weights = balancer.weigh(torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64)), {"c": 1.0, "a": 1.0})
    torch.testing.assert_close(weights, torch.tensor([0.525, 0.475], dtype=torch.float64))
    expected = torch.tensor([2 / 3 * 0.475, 1 / 3, 2 / 3 * 0.525], dtype=torch.float64)
    torch.testing.assert_close(balancer.held, expected)


@pytest.mark.parametrize("settings_", [{"gamma": 0.0}, {"gamma": float("nan")}, {"rho": -1.0}])
def test_modo_refuses_settings_that_are_none(settings_: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected a finite number"):
        MoDo(**settings_)


# The rest


def test_random_weights_are_those_of_torchjd_and_on_the_simplex() -> None:
    jacobian = rows(0, 5)
    torch.manual_seed(3)
    expected = peer.Random()(jacobian)
    torch.manual_seed(3)
    weights = RandomWeights().weigh(jacobian @ jacobian.T, dict.fromkeys("abcde", 1.0))
    torch.testing.assert_close(weights @ jacobian, expected)
    assert float(weights.sum()) == pytest.approx(1) and float(weights.min()) > 0


@pytest.mark.parametrize("make", [GradVac, MoDo])
def test_what_keeps_something_of_each_task_needs_their_names(make: Callable[[], GramianWeighting]) -> None:
    with pytest.raises(InputError, match="attribute 'tasks'"):
        make().prepare([])


def test_gradvac_refuses_a_beta_out_of_range() -> None:
    with pytest.raises(InputError, match=r"beta 1\.5: expected a number from 0 to 1"):
        GradVac(beta=1.5)
