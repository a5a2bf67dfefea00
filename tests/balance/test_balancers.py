"""Every registered balancer through the shared suite, and closed forms of those that have them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polytask.balance import Equal, Fixed, Uncertainty, balancers, gradient_cosines
from polytask.errors import InputError
from polytask.testing import check_balancer

losses = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


@pytest.mark.parametrize("name", balancers)
def test_every_balancer_keeps_the_contract(name: str) -> None:
    check_balancer(balancers[name])


def test_fixed_weights_keep_the_contract() -> None:
    check_balancer(lambda: Fixed({}))


@given(losses)
def test_equal_is_the_sum(values: list[float]) -> None:
    named = {str(i): torch.tensor(v, dtype=torch.float64) for i, v in enumerate(values)}
    assert float(Equal().combine(named)) == pytest.approx(sum(values))


@given(losses, st.data())
def test_fixed_is_the_weighted_sum(values: list[float], data: st.DataObject) -> None:
    weights = data.draw(st.dictionaries(st.sampled_from([str(i) for i in range(len(values))]), st.floats(0, 10)))
    balancer = Fixed(weights)
    balancer.prepare([str(i) for i in range(len(values))])
    named = {str(i): torch.tensor(v, dtype=torch.float64) for i, v in enumerate(values)}
    expected = sum(weights.get(str(i), 1.0) * v for i, v in enumerate(values))
    assert float(balancer.combine(named)) == pytest.approx(expected)


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_fixed_refuses_weights_that_are_none(weight: float) -> None:
    with pytest.raises(InputError, match="of task 'a': expected a finite number"):
        Fixed({"a": weight})


def test_fixed_suggests_the_task_that_was_meant() -> None:
    with pytest.raises(InputError, match="unknown task 'lefd': did you mean 'left'"):
        Fixed({"lefd": 1.0}).prepare(["left", "right"])


@given(losses)
def test_uncertainty_starts_as_the_plain_sum(values: list[float]) -> None:
    names = [str(i) for i in range(len(values))]
    balancer = Uncertainty()
    balancer.prepare(names)
    leaves = [torch.tensor(v, requires_grad=True) for v in values]
    total = balancer.combine(dict(zip(names, leaves, strict=True)))
    total.backward()
    assert float(total.detach()) == pytest.approx(sum(values), rel=1e-5)
    assert all(float(leaf.grad) == 1 for leaf in leaves)  # type: ignore[arg-type]
    # d/ds (exp(-s) L + s/2) = 1/2 - L at s = 0
    torch.testing.assert_close(balancer.log_variance.grad, 0.5 - torch.tensor(values))


@given(losses)
def test_uncertainty_is_least_where_the_variance_is_twice_the_loss(values: list[float]) -> None:
    """``exp(-s) L + s/2`` has its minimum at ``s = log 2L``, where it is ``1/2 + log(2L) / 2``."""
    names = [str(i) for i in range(len(values))]
    balancer = Uncertainty()
    balancer.prepare(names)
    balancer.double()
    fixed = torch.tensor(values, dtype=torch.float64)
    with torch.no_grad():
        balancer.log_variance.copy_(torch.log(2 * fixed))
    total = balancer.combine(dict(zip(names, fixed, strict=True)))
    total.backward()
    assert float(total.detach()) == pytest.approx(sum(0.5 + math.log(2 * v) / 2 for v in values))
    torch.testing.assert_close(balancer.log_variance.grad, torch.zeros_like(fixed), atol=1e-9, rtol=0)


def test_uncertainty_weighs_each_task_by_its_own_variance_in_any_order() -> None:
    balancer = Uncertainty()
    balancer.prepare(["a", "b", "c"])
    with torch.no_grad():
        balancer.log_variance.copy_(torch.tensor([0.0, 1.0, 2.0]))
    named = {"c": torch.tensor(1.0), "a": torch.tensor(10.0), "b": torch.tensor(100.0)}
    expected = 10 + 100 * math.exp(-1) + 0.5 + math.exp(-2) + 1
    assert balancer.combine(named).item() == pytest.approx(expected)
    assert balancer.combine({"c": named["c"]}).item() == pytest.approx(math.exp(-2) + 1)


def test_uncertainty_needs_the_names_of_the_tasks() -> None:
    with pytest.raises(InputError, match="attribute 'tasks'"):
        Uncertainty().prepare([])


def test_cosines_of_gradients_are_those_of_the_gradients_written_out() -> None:
    torch.manual_seed(0)
    shared, frozen = nn.Linear(3, 2), nn.Parameter(torch.ones(2), requires_grad=False)
    x = torch.randn(7, 3)
    features = shared(x) * frozen
    named = {"a": features[:, 0].square().mean(), "b": features[:, 1].sum(), "c": (features.sum(1) - 1).abs().mean()}
    rows = []
    for loss in named.values():
        grads = torch.autograd.grad(loss, list(shared.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    expected = torch.nn.functional.cosine_similarity(torch.stack(rows)[:, None], torch.stack(rows)[None], dim=2)
    found = gradient_cosines(named, [*shared.parameters(), frozen])
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    assert all(p.grad is None for p in shared.parameters())
    sum(named.values()).backward()  # type: ignore[union-attr]  # the graph is still there


def test_cosines_with_a_gradient_that_vanishes_are_not_numbers() -> None:
    weight = nn.Parameter(torch.ones(2))
    found = gradient_cosines({"a": weight.sum(), "b": (weight * 0).sum(), "c": -weight.sum()}, [weight])
    assert found[0, 2] == -1 and found[0, 0] == 1
    assert bool(found[1].isnan().all()) and bool(found[:, 1].isnan().all())
