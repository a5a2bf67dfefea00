"""Pruning with a veto for each task: the tolerances, the guarantee, and the plain way beside the fast one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polytask.cost import macs
from polytask.errors import InputError
from polytask.shrink import Pruned, Tolerances, decay, find_structure, masked, prune_by_task, prune_in_rounds
from polytask.shrink.by_task import RATIOS, by_saving


@pytest.mark.parametrize(
    ("initial", "groups", "growth", "expected"),
    [
        (0.05, 60, 5.0, 0.976971),
        (0.06, 60, 6.0, 0.973794),
        (0.06, 20, 6.0, 1.044861),
        (0.05, 10, 1.5, 0.957210),
        (0.05, 4, 1.2, 0.953765),
    ],
)
def test_the_factor_between_tolerances(initial: float, groups: int, growth: float, expected: float) -> None:
    factor = decay(initial, groups, growth)
    assert factor == pytest.approx(expected, abs=1e-6)
    assert math.prod(1 + initial * factor**i for i in range(groups)) == pytest.approx(growth, rel=1e-9)
    if (initial, growth) == (0.05, 5.0):
        assert initial * factor**59 == pytest.approx(0.012647, abs=1e-6)


def problem(seed: int = 0, steps: int = 60) -> tuple[nn.Module, Callable[[nn.Module], dict[str, float]], torch.Tensor]:
    """A network of two outputs, fitted to two functions; losses of both on fixed data."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 2))
    )
    x = torch.randn(200, 4)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs() + 0.1 * torch.randn(200)], 1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(x) - y).square().mean().backward()
        optimizer.step()

    def losses(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            each = (model(x) - y).square().mean(0)
        return {"product": float(each[0]), "size": float(each[1])}

    return network, losses, x


def pruned(
    network: nn.Module, losses: Callable[..., dict[str, float]], x: torch.Tensor, *args: object, **kwargs: object
) -> Pruned:
    return prune_by_task(network, find_structure(network, x[:2]), losses, lambda n: macs(n, x[:1]), *args, **kwargs)  # type: ignore[arg-type]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 100), st.floats(0.01, 0.4), st.floats(1.5, 10.0), st.booleans())
def test_no_loss_ends_above_its_growth(seed: int, initial: float, growth: float, bisect: bool) -> None:
    network, losses, x = problem(seed, steps=seed % 20)
    found = pruned(network, losses, x, Tolerances(initial, growth, absolute=0), bisect=bisect)
    end = losses(found.network)
    for task, start in losses(network).items():
        assert end[task] <= growth * start * (1 + 1e-5)
    assert all(step.losses[task] <= step.before[task] * (1 + step.tolerance) for step in found.steps for task in end)
    assert found.steps[-1].losses == pytest.approx(end, rel=1e-4) if found.steps else True


@pytest.mark.parametrize("growth", [1.3, 3.0])
def test_bisection_and_the_prefix_accept_what_the_plain_way_accepts(growth: float) -> None:
    network, losses, x = problem()
    plain = pruned(network, losses, x, Tolerances(0.05, growth), bisect=False, cache=0)
    fast = pruned(network, losses, x, Tolerances(0.05, growth))
    assert [(s.group, s.units, s.tolerance) for s in plain.steps] == [(s.group, s.units, s.tolerance) for s in fast.steps]
    assert (
        fast.passes <= 1 + 5 * 3
        and plain.steps
        and all(a.losses == pytest.approx(b.losses) for a, b in zip(plain.steps, fast.steps, strict=True))
    )


def test_one_task_and_a_fixed_tolerance_is_greedy_sensitivity_pruning() -> None:
    """An independent way, with masks: group by group, ratio by ratio, relative to the running base."""
    network, losses, x = problem()
    structure, tolerance = find_structure(network, x[:2]), 0.1

    def one(model: nn.Module) -> dict[str, float]:
        return {"both": sum(losses(model).values())}

    gone: dict[str, list[int]] = {}
    base = one(network)["both"]
    for name in by_saving(network, structure, lambda n: macs(n, x[:1])):
        layer = masked(network, structure, gone).get_submodule(name)
        order = layer.weight.abs().sum(1).argsort(stable=True).tolist()
        accepted, loss = 0, base
        for ratio in RATIOS:
            trial = {**gone, name: order[: int(ratio * len(order) + 1e-9)]}
            now = one(masked(network, structure, trial))["both"]
            if now > base * (1 + tolerance):
                break
            accepted, loss = int(ratio * len(order) + 1e-9), now
        if accepted:
            gone[name], base = order[:accepted], max(base, loss)
    found = pruned(network, one, x, Tolerances(tolerance, exponential=False), bisect=False)
    assert {name: sorted(units) for name, units in found.removed.items()} == {n: sorted(u) for n, u in gone.items()}


def test_units_that_nothing_reads_all_go() -> None:
    network, losses, x = problem()
    with torch.no_grad():
        network[2].weight[:13] *= 1e-3  # the weakest 13 of 24, which nothing reads
        network[4].weight[:, :13] = 0
    tight = Tolerances(1e-6, exponential=False, absolute=0)
    found = {step.group: step for step in pruned(network, losses, x, tight).steps}
    allowed = max(int(ratio * 24 + 1e-9) for ratio in RATIOS if int(ratio * 24 + 1e-9) <= 13)
    assert len(found["2"].units) == allowed and set(found["2"].units) <= set(range(13))


def test_a_group_that_no_ratio_violates_is_pruned_by_the_largest() -> None:
    network, losses, x = problem()
    with torch.no_grad():
        network[6].weight.zero_()
    found = pruned(network, losses, x, Tolerances(1e-6, exponential=False))
    assert {step.group: len(step.units) for step in found.steps} == {"0": 19, "2": 22, "4": 11}


def test_int_of_the_ratio_goes_and_one_stays() -> None:
    network = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 2), nn.ReLU(), nn.Linear(2, 1))
    x = torch.randn(5, 3)
    found = pruned(network, lambda n: {"a": 1.0}, x, ratios=[0.05])
    assert {step.group: len(step.units) for step in found.steps} == {"0": 3}
    found = pruned(network, lambda n: {"a": 1.0}, x, ratios=[0.999])
    assert {step.group: len(step.units) for step in found.steps} == {"0": 63, "2": 1}


def test_each_task_has_a_veto_and_may_have_its_own_tolerance() -> None:
    network, losses, x = problem()
    size = lambda found: macs(found.network, x[:1])  # noqa: E731
    free = pruned(network, losses, x, Tolerances(0.2, exponential=False))
    strict = pruned(network, losses, x, Tolerances(0.2, exponential=False, tasks={"size": 0.01}))
    summed = pruned(network, lambda n: {"sum": sum(losses(n).values())}, x, Tolerances(0.2, exponential=False))
    start = losses(network)
    assert losses(strict.network)["size"] <= start["size"] * 1.002**3 * (1 + 1e-6)
    assert size(strict) > size(free) and size(summed) <= size(free)
    with pytest.raises(InputError, match="unknown task 'siz': did you mean 'size'"):
        pruned(network, losses, x, Tolerances(tasks={"siz": 0.1}))


def test_near_zero_losses_have_an_absolute_floor() -> None:
    base = {"a": 0.0, "b": 1.0}
    assert Tolerances(absolute=1e-2).allow({"a": 4e-4, "b": 1.0}, base, 0.05)
    assert not Tolerances(absolute=1e-2).allow({"a": 6e-4, "b": 1.0}, base, 0.05)
    assert not Tolerances(absolute=0).allow({"a": 1e-9, "b": 1.0}, base, 0.05)
    assert not Tolerances().allow({"a": math.nan, "b": 1.0}, base, 0.05)


def test_filtering_gives_back_what_saves_least_for_its_loss() -> None:
    network, losses, x = problem()
    every = pruned(network, losses, x, Tolerances(0.2, 3.0))
    some = pruned(network, losses, x, Tolerances(0.2, 3.0), top=0.7)
    assert len(every.steps) == 3 and len(some.steps) == 2
    price = {s.group: (sum(s.losses.values()) - sum(s.before.values())) / s.saved for s in every.steps}
    assert {s.group for s in some.steps} == set(sorted(price, key=lambda name: price[name])[:2])
    assert [s.group for s in some.steps] == [s.group for s in every.steps if s.group in {t.group for t in some.steps}]
    counts = {s.group: len(s.units) for s in every.steps}
    assert all(len(s.units) == counts[s.group] for s in some.steps)
    assert macs(every.network, x[:1]) < macs(some.network, x[:1]) < macs(network, x[:1])


def test_rounds_go_on_from_the_smaller_network() -> None:
    network, losses, x = problem()
    tuned = []
    settings = {"initial_slope": 0.02, "growth_slope": 1.0}
    rounds = prune_in_rounds(
        network,
        find_structure(network, x[:2]),
        losses,
        lambda n: macs(n, x[:1]),
        tuned.append,
        3,
        Tolerances(0.05, 2.0),
        **settings,  # type: ignore[arg-type]
    )
    sizes = [macs(r.network, x[:1]) for r in rounds]
    assert sizes == sorted(sizes, reverse=True) and tuned == [r.network for r in rounds]
    assert [round(r.steps[0].tolerance, 6) for r in rounds if r.steps][:2] == [0.05, 0.07]
    for group in find_structure(rounds[-1].network, x[:2]).groups:
        assert rounds[-1].structure[group.name].units == group.units


def test_it_stops_at_a_cost_with_as_few_units_as_that_takes() -> None:
    network, losses, x = problem()
    target = 0.7 * macs(network, x[:1])
    found = pruned(network, losses, x, Tolerances(1.0, 100.0), until=target)
    assert 0.93 * target < macs(found.network, x[:1]) <= target


def test_what_cannot_be() -> None:
    network, losses, x = problem(steps=0)
    for wrong in ({"ratios": [0.5, 0.2]}, {"ratios": []}, {"top": 0.0}, {"ratios": [1.0]}):
        with pytest.raises(InputError, match="expected rising numbers between 0 and 1"):
            pruned(network, losses, x, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1 \\+ initial"):
        Tolerances(0.5, 1.2)
    with pytest.raises(InputError, match="the loss of 'a' is nan before"):
        pruned(network, lambda n: {"a": math.nan}, x)
