"""Task weights learned on held-out batches: hypergradients against exact ones, and what learning by them does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polytask.balance._bilevel import gradients, slopes, slopes_by_difference
from polytask.balance.auto_lambda import AutoLambda
from polytask.balance.engine.graph import leaves
from polytask.balance.forum import FORUM, shares
from polytask.balance.moml import MOML, common
from polytask.balance.perturb import restored
from polytask.errors import InputError
from polytask.testing import check_balancer

METHODS: list[Callable[..., Any]] = [AutoLambda, MOML, FORUM]
NAMES = ("a", "b", "c")


class Problem:
    """Quadratic losses of a shared vector and a head for each task; held-out losses have other centres."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.shared = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))
        self.heads = {n: nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64)) for n in NAMES}
        self.curves = {n: torch.randn(6, 6, generator=generator, dtype=torch.float64) for n in NAMES}
        self.train = {n: torch.randn(6, generator=generator, dtype=torch.float64) for n in NAMES}
        self.held_out = {n: torch.randn(6, generator=generator, dtype=torch.float64) for n in NAMES}
        self.dropout = nn.Dropout(dropout)

    def at(self, centres: Mapping[str, Tensor], shared: Tensor, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {n: self.dropout(torch.cat([shared, heads[n]])) for n in centres}
        return {n: (self.curves[n] @ own[n] - centres[n]).square().mean() for n in centres}

    def losses(self) -> dict[str, Tensor]:
        return self.at(self.train, self.shared, self.heads)

    def held_out_losses(self) -> dict[str, Tensor]:
        return self.at(self.held_out, self.shared, self.heads)

    def parameters(self) -> list[nn.Parameter]:
        return [self.shared, *self.heads.values()]

    def after_virtual_step(self, w: Tensor, rate: float) -> dict[str, Tensor]:
        """The held-out losses after a step on the weighted training losses, as functions of the weights."""
        total = (w * torch.stack(tuple(self.losses().values()))).sum()
        grads = torch.autograd.grad(total, self.parameters(), create_graph=True)
        shared, *heads = (p - rate * g for p, g in zip(self.parameters(), grads, strict=True))
        return self.at(self.held_out, shared, dict(zip(NAMES, heads, strict=True)))


def prepared(balancer: Any, problem: Problem | None = None) -> Any:
    balancer.prepare(NAMES)
    balancer.double()
    if problem is not None:
        balancer.watch(problem.held_out_losses)
    return balancer


@pytest.mark.parametrize("make", METHODS)
def test_the_contract_of_balancers(make: Callable[..., Any]) -> None:
    check_balancer(make)


# Hypergradients


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("primary", [None, ("b",)])
def test_auto_lambdas_hypergradient_is_that_of_the_virtual_step(seed: int, primary: Any) -> None:
    problem = Problem(seed)
    balancer = prepared(AutoLambda(primary=primary, start=0.7, virtual_lr=0.05), problem)
    w = balancer.weights.value.clone().requires_grad_()
    after = problem.after_virtual_step(w, 0.05)
    expected = torch.autograd.grad(sum(after[n] for n in primary or NAMES), w)[0]  # type: ignore[arg-type]
    found = balancer.hypergradient(problem.losses(), problem.losses)
    torch.testing.assert_close(found, expected.to(found), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_momls_hypergradients_are_those_of_the_virtual_step(seed: int) -> None:
    problem = Problem(seed)
    balancer = prepared(MOML(virtual_lr=0.05), problem)
    balancer.logits.value += torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    logits = balancer.logits.value.clone().requires_grad_()
    after = problem.after_virtual_step(logits.softmax(0), 0.05)
    expected = torch.stack([torch.autograd.grad(after[n], logits, retain_graph=True)[0] for n in NAMES])
    torch.testing.assert_close(balancer.hypergradients(problem.losses(), problem.losses), expected)


def test_differences_and_backward_passes_agree_also_under_dropout() -> None:
    problem = Problem(1, dropout=0.5)
    parameters = leaves(problem.losses().values())
    torch.manual_seed(3)
    losses = problem.losses()
    direction = gradients(losses["a"] + losses["b"], parameters)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = slopes_by_difference(problem.losses, NAMES, parameters, direction)
    assert torch.equal(torch.get_rng_state(), state)
    expected = slopes(losses, parameters, [direction])[:, 0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)  # losses in single precision


def test_without_a_direction_there_is_no_slope() -> None:
    problem = Problem()
    parameters = leaves(problem.losses().values())
    zero = [torch.zeros_like(p) for p in parameters]
    assert slopes_by_difference(problem.losses, NAMES, parameters, zero).tolist() == [0, 0, 0]


def test_the_leaves_of_losses_are_found_once_each() -> None:
    problem = Problem()
    losses = problem.losses()
    assert set(leaves(losses.values())) == set(problem.parameters())
    assert set(leaves([losses["a"]])) == {problem.shared, problem.heads["a"]}
    frozen = Problem()
    frozen.shared.requires_grad_(False)
    assert set(leaves(frozen.losses().values())) == set(frozen.heads.values())
    assert leaves([torch.ones(())]) == []


def test_parameters_that_move_come_back_with_their_bits_and_earlier_graphs_stay_good() -> None:
    problem = Problem()
    losses = problem.losses()
    parameters = problem.parameters()
    before = [p.detach().clone() for p in parameters]
    expected = gradients(losses["a"], parameters)
    with restored(parameters) as move:
        move(1 / 3, expected)
        assert not torch.equal(problem.shared.detach(), before[0])
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(expected, gradients(losses["a"], parameters), strict=True))


# Steps


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("make", METHODS)
def test_a_step_leaves_the_parameters_where_they_are_and_adds_gradients(make: Callable[..., Any], watched: bool) -> None:
    problem = Problem()
    balancer = prepared(make(virtual_lr=0.1), problem if watched else None)
    before = [p.detach().clone() for p in problem.parameters()]
    once: list[Tensor] = []
    for start in (0.0, 1.0):
        again = prepared(make(virtual_lr=0.1), problem if watched else None)
        for p in problem.parameters():
            p.grad = torch.full_like(p, start)
        again.step([problem.losses], [problem.shared], Tensor.backward)
        found = [p.grad - start for p in problem.parameters() if p.grad is not None]
        for a, b in zip(once, found, strict=False):
            torch.testing.assert_close(a, b)
        once = found
    for _ in range(3):
        balancer.step([problem.losses, problem.losses], [problem.shared], Tensor.backward)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.parameters(), strict=True))


def opposed() -> Problem:
    """Task b's training losses pull where no held-out loss wants to go."""
    problem = Problem(2)
    problem.curves = dict.fromkeys(NAMES, torch.eye(6, dtype=torch.float64))
    ahead = torch.ones(6, dtype=torch.float64) * 4
    problem.train = {"a": ahead, "b": -ahead, "c": ahead}
    problem.held_out = {"a": ahead, "c": ahead}
    return problem


@pytest.mark.parametrize("make", [AutoLambda, MOML])
def test_the_step_follows_the_training_losses_under_the_new_weights(make: Callable[..., Any]) -> None:
    problem = opposed()
    balancer = prepared(make(lr=0.05), problem)
    for _ in range(20):
        for p in problem.parameters():
            p.grad = None
        balancer.step([problem.losses], [problem.shared], Tensor.backward)
    w = balancer.weights.value if make is AutoLambda else balancer.logits.value.softmax(0)
    assert not torch.allclose(w, w.mean())
    expected = gradients((w * torch.stack(tuple(problem.losses().values()))).sum(), problem.parameters())
    for p, gradient in zip(problem.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize("make", [AutoLambda, MOML])
def test_a_task_whose_step_harms_the_held_out_losses_loses_weight(make: Callable[..., Any]) -> None:
    problem = opposed()
    balancer = prepared(make(lr=0.01), problem)
    for _ in range(30):
        balancer.step([problem.losses], [problem.shared], Tensor.backward)
    a, b, c = (balancer.weights if make is AutoLambda else balancer.logits).value.tolist()
    assert b < a - 0.05 and b < c - 0.05
    assert make is MOML or b == 0  # it stops at 0


@pytest.mark.parametrize("make", METHODS)
def test_a_held_out_batch_without_any_task_of_the_step_teaches_nothing_wrong(make: Callable[..., Any]) -> None:
    problem = Problem()
    balancer = prepared(make(), problem)
    balancer.step([lambda: {"a": problem.losses()["a"]}], [problem.shared], Tensor.backward)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in problem.parameters())
    if make is not FORUM:
        assert problem.heads["b"].grad is None
    balancer.watch(dict)
    if make is not FORUM:
        balancer.step([problem.losses], [problem.shared], Tensor.backward)
    assert all(bool(value.isfinite().all()) for value in balancer.buffers())


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("sizes", [(1e-30, 1.0), (1e30, 1.0), (1e30, 1e-30), (0.0, 1.0), (0.0, 0.0)])
def test_losses_of_any_size_give_finite_steps(make: Callable[..., Any], sizes: tuple[float, float]) -> None:
    balancer = make()
    balancer.prepare(["0", "1"])
    weight = nn.Parameter(torch.tensor([[0.5, -0.3]]))

    def losses() -> dict[str, Tensor]:
        base = weight.square().sum() + weight.sum() + 1
        return {"0": base * sizes[0], "1": (base + weight[0, 0]) * sizes[1]}

    for _ in range(4):
        weight.grad = None
        balancer.backward(losses(), [weight], Tensor.backward)
        assert weight.grad is not None and bool(weight.grad.isfinite().all())
        weight.grad = None
        balancer.step([losses], [weight], Tensor.backward)
        assert weight.grad is not None and bool(weight.grad.isfinite().all())
        assert all(bool(value.isfinite().all()) for value in balancer.buffers())


@pytest.mark.parametrize("make", METHODS)
def test_settings_that_cannot_be(make: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="virtual_lr 0: expected a finite number > 0"):
        make(virtual_lr=0)
    with pytest.raises(InputError, match="keeps something of each task"):
        make().prepare([])


def test_primary_tasks_have_to_be_known() -> None:
    with pytest.raises(InputError, match="unknown task 'lefd': did you mean 'left'"):
        AutoLambda(primary=["lefd"]).prepare(["left"])
    with pytest.raises(InputError, match="inner 0, window 100: expected at least 1"):
        FORUM(inner=0)


# The shortest combination, and FORUM's shares


def test_the_common_direction_is_the_shortest_in_the_hull_of_unit_rows() -> None:
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.1], [0.0, 0.0]])
    torch.testing.assert_close(common(rows), torch.tensor([0.5, 0.5]))
    assert common(torch.zeros(2, 3)).tolist() == [0, 0, 0]
    torch.testing.assert_close(common(torch.tensor([[2.0, 0.0], [-1.0, 0.0]])), torch.zeros(2), atol=1e-6, rtol=0)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 7),
    st.floats(-5, 3),
    st.integers(0, 10**6),
    st.sampled_from(["none", "same", "opposite", "zero", "q"]),
)
def test_forums_shares_meet_the_optimality_conditions(tasks: int, size: int, power: float, seed: int, kind: str) -> None:
    rows = np.random.default_rng(seed).normal(size=(tasks + 1, size))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    last = {"same": rows[-2], "opposite": -rows[-2], "zero": 0 * rows[0]}
    rows[0] = last.get(kind, rows[0])
    rows[-1] = rows[0] if kind == "q" else rows[-1]
    matrix, pull = rows @ rows.T, 10**power
    share = shares(matrix, pull)
    assert share.sum() == pytest.approx(1) and bool((share >= 0).all())
    v = max(0.0, pull - float(share @ matrix[:-1, -1]))
    slope = matrix @ np.append(share, v)
    level = slope[:-1] @ share
    assert float(slope[:-1].min() - level) >= -1e-7 * max(1.0, pull)


def test_forums_shares_of_two_tasks_in_numbers() -> None:
    # The constraint pulls hard along the first task's own direction: only the second needs a share.
    first = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(shares(first @ first.T, 10.0), [0, 1], atol=1e-9)
    # It is square to both: they share as if it were not there.
    np.testing.assert_allclose(shares(np.eye(3), 10.0), [0.5, 0.5], atol=1e-9)


def test_forums_step_gains_on_every_held_out_loss_and_closes_the_gap() -> None:
    """Plain descent along its step: held-out losses fall, though the training losses alone would not make them."""
    problem = Problem(3)
    problem.curves = dict.fromkeys(NAMES, torch.eye(6, dtype=torch.float64))
    balancer = prepared(FORUM(virtual_lr=0.5), problem)
    start = {name: loss.item() for name, loss in problem.held_out_losses().items()}
    for _ in range(10):
        for p in problem.parameters():
            p.grad = None
        balancer.step([problem.losses], [problem.shared], Tensor.backward)
        direction = [p.grad.clone() for p in problem.parameters() if p.grad is not None]
        held_out = {n: gradients(loss, problem.parameters()) for n, loss in problem.held_out_losses().items()}
        for row in held_out.values():
            assert float(sum((a * b).sum() for a, b in zip(row, direction, strict=True))) > -1e-9
        with torch.no_grad():
            for p, d in zip(problem.parameters(), direction, strict=True):
                p -= 0.02 * d
    end = problem.held_out_losses()
    assert all(end[name].item() < start[name] for name in NAMES)


def test_forums_logits_move_by_the_gap_that_the_inner_steps_close() -> None:
    """Where the constraint counts, ``d (f(p) - f(p_T)) / d logits``: a task that training could lower fast loses weight."""
    problem = Problem(4)
    problem.curves = dict.fromkeys(NAMES, torch.eye(6, dtype=torch.float64))
    problem.train = {
        n: (torch.cat([problem.shared, problem.heads[n]]) + k).detach() for n, k in zip(NAMES, (0.1, 3, 0.1), strict=True)
    }
    balancer = prepared(FORUM(rho=5.0, virtual_lr=0.1), problem)
    balancer.step([problem.losses], [problem.shared], Tensor.backward)
    a, b, c = balancer.logits.value.tolist()
    assert b < 0 < min(a, c)
