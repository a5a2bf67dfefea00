"""Budgets and floors: what is asked, what can be had, and what is said where it cannot."""

from __future__ import annotations

import pytest
import torch
from tests.shrink.test_by_task import problem

from polytask.cost import macs
from polytask.errors import InputError
from polytask.shrink import Budget, Floor, Shrinking, find_structure, prune_to, remove, shrink


def test_budgets_and_floors_as_they_are_written() -> None:
    assert Budget.parse("macs=0.5x") == Budget("macs", 0.5, True) and Budget.parse("macs=0.5x").target(80) == 40
    assert Budget.parse("activation_bytes=1e6").target(80) == 1e6
    assert Floor.parse("0.97") == Floor(0.97) and Floor.parse("-1%") == Floor(-0.01, True) == Floor.parse(" -1.0% ")
    assert Floor.parse("-10%").bound(0.9, True) == pytest.approx(0.81)
    assert Floor.parse("-10%").bound(2.0, False) == pytest.approx(2.2)
    assert Floor.parse("-10%").bound(-0.5, True) == pytest.approx(-0.55)
    assert Floor(1.5).met(1.4, 9.0, higher_is_better=False) and not Floor(1.5).met(1.4, 9.0, higher_is_better=True)
    for text in ("flops=0.5x", "macs", "macs=0x", "macs=-1", "macs=x"):
        with pytest.raises(InputError, match=f"budget {text!r}"):
            Budget.parse(text)
    for text in ("", "high", "1%%", "--1", "nan"):
        with pytest.raises(InputError, match="floor"):
            Floor.parse(text)


def test_the_target_is_reached_in_rounds() -> None:
    network, losses, x = problem()
    structure = find_structure(network, x[:2])

    def cost(n: torch.nn.Module) -> float:
        return macs(n, x[:1])

    whole = cost(network)
    found = prune_to(network, structure, losses, cost, 0.5 * whole)
    assert 0.45 * whole < cost(found.network) <= 0.5 * whole
    again = remove(network, structure, found.removed)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in found.network.state_dict().items())
    assert len(found.steps) > len({step.group for step in found.steps})  # several rounds
    for step in found.steps:
        assert all(step.losses[task] <= step.before[task] * (1 + step.tolerance) + 1e-3 for task in step.losses)
    with pytest.raises(InputError, match=r"the smallest reachable is \d+, 0\.0"):
        prune_to(network, structure, losses, cost, 1)
    with pytest.raises(InputError, match="nothing more can be removed"):
        prune_to(network, structure, losses, cost, 0.5 * whole, tasks={"size": 0.0})


def shrunk(**settings: object) -> Shrinking:
    network, losses, x = problem()

    def metrics(model: torch.nn.Module) -> dict[str, float]:
        return {task: 1 - loss for task, loss in losses(model).items()}

    better = {"product": True, "size": True}
    chosen = {"budget": "macs=0.5x", "shares": (0.8,), **settings}
    return shrink(network, x[:1], losses=losses, metrics=metrics, higher_is_better=better, **chosen)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def free() -> Shrinking:
    """A table whose floors forbid nothing."""
    return shrunk(floors={"size": "-90%"})


def test_a_table_over_budgets(free: Shrinking) -> None:
    assert [round(row.budget / free.whole, 2) for row in free.rows] == [0.8, 0.5]
    assert all(row.cost <= row.budget and not row.below for row in free.rows)
    row = free.within(0.5 * free.whole)
    assert row is free.rows[1] is free.reachable and row.share <= 0.5
    assert sum(p.numel() for p in row.network.parameters()) < 20 * 4 + 24 * 20 + 24 * 12 + 24 + 20 + 24 + 12 + 2


def test_floors_forbid_budgets_and_say_closely_what_can_be_had(free: Shrinking) -> None:
    between = sum(row.metrics["size"] for row in free.rows) / 2
    found = shrunk(floors={"size": str(between)}, closer=2)
    assert [row.budget for row in found.rows] == sorted((row.budget for row in found.rows), reverse=True)
    assert len(found.rows) == 4 and found.rows[0].below == () and found.rows[-1].below == ("size",)
    assert [found.rows[0].cost, found.rows[-1].cost] == [row.cost for row in free.rows]
    forbidden = max(row.cost for row in found.rows if row.below)
    assert found.reachable is not None
    assert 0 < found.reachable.cost - forbidden < 0.4 * (free.rows[0].cost - free.rows[1].cost)
    with pytest.raises(
        InputError, match=r"0\.50x, cannot be met with these floors; there size is .*was reached is .*0\.\d\dx"
    ):
        found.within(0.5 * found.whole)
    with pytest.raises(InputError, match="the whole model"):
        shrunk(floors={"size": "1.0"}, closer=0, shares=()).within(0.5 * found.whole)


def test_fine_tuning_comes_before_judgement() -> None:
    tuned: list[torch.nn.Module] = []
    found = shrunk(finetune=tuned.append, shares=())
    assert tuned == [row.network for row in found.rows]


def test_what_cannot_be_is_said_first() -> None:
    with pytest.raises(InputError, match="a floor for an unknown task 'siz': did you mean 'size'"):
        shrunk(floors={"siz": "0.5"})
    with pytest.raises(InputError, match=r"a budget of .* cannot be met: the smallest reachable is [\d,]+, macs=0\.0\d+x"):
        shrunk(budget="macs=0.001x")
