"""Shrinking to a budget, and which budgets can be had with no task below its floor."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from torch import nn

from polytask.cost import count
from polytask.errors import InputError, suggest
from polytask.nn.modes import evaluating
from polytask.shrink.by_task import RATIOS, Cost, Losses, Pruned, Step, Tolerances, prune_by_task
from polytask.shrink.criteria import Criterion, uniform
from polytask.shrink.groups import Structure, find_structure
from polytask.shrink.removal import remove

Quantity: TypeAlias = Literal["macs", "parameters", "activation_bytes"]
QUANTITIES: tuple[Quantity, ...] = ("macs", "parameters", "activation_bytes")

SHARES = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2)
"""The budgets of a Pareto table, as shares of what the whole model costs."""

GROWTH, LARGEST = 1.1, 1e6
"""By how much losses may grow in one round of pruning to a budget, to begin with and at most."""


@dataclass(frozen=True)
class Budget:
    """What a model may cost: a quantity of `polytask.cost.Count`, and its largest value, of the whole model's if relative.

    >>> Budget.parse("macs=0.5x"), Budget.parse("parameters=2e5").target(1e6)
    (Budget(quantity='macs', value=0.5, relative=True), 200000.0)
    """

    quantity: Quantity
    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget as the command line has it: ``macs=0.5x`` for a share, ``parameters=200000`` for a number."""
        name, _, number = text.partition("=")
        try:
            value = float(number.removesuffix("x"))
        except ValueError:
            value = math.nan
        if name not in QUANTITIES:
            raise InputError(f"budget {text!r}: unknown quantity {name!r}: {suggest(name, QUANTITIES)}")
        if not 0 < value < math.inf:
            raise InputError(f"budget {text!r}: expected a number above 0, or a share such as {name}=0.5x")
        return cls(name, value, number.endswith("x"))

    def target(self, whole: float) -> float:
        """The largest cost, where the whole model costs ``whole``."""
        return self.value * whole if self.relative else self.value

    def cost(self, *inputs: Any) -> Cost:
        """The function that says what a network costs for these inputs."""
        return lambda network: float(getattr(count(network, *inputs).total, self.quantity))


@dataclass(frozen=True)
class Floor:
    """What a task must not fall below: a value of its metric, or a change relative to the whole model's value.

    >>> Floor.parse("-1%").met(0.95, whole=0.96, higher_is_better=False)
    True
    >>> Floor.parse("-1%").met(0.95, whole=0.96, higher_is_better=True), Floor.parse("0.9").met(0.95, 0.96, True)
    (False, True)
    """

    value: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Floor:
        """``0.97`` for a value of the metric, ``-1%`` for at most one percent worse than it was."""
        found = re.fullmatch(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)(%?)", text.strip())
        try:
            value = float(found[1]) if found else math.nan
        except ValueError:
            value = math.nan
        if found is None or not math.isfinite(value):
            raise InputError(f"floor {text!r}: expected a value of the metric, or a change such as -1%")
        return cls(value / 100, True) if found[2] else cls(value)

    def bound(self, whole: float, higher_is_better: bool) -> float:
        """The worst value that is allowed."""
        if not self.relative:
            return self.value
        return whole + self.value * abs(whole) * (1 if higher_is_better else -1)

    def met(self, value: float, whole: float, higher_is_better: bool) -> bool:
        """Whether a value is no worse than that."""
        bound = self.bound(whole, higher_is_better)
        return value >= bound if higher_is_better else value <= bound


@dataclass(frozen=True, eq=False)
class Row:
    """A model within a budget.

    Attributes:
        budget: the largest cost that was asked for.
        cost: what the model costs; ``share`` of the whole.
        metrics: each task's metric, after fine-tuning where there is some.
        below: the tasks whose floor it misses.
        network: the model.
    """

    budget: float
    cost: float
    share: float
    metrics: Mapping[str, float]
    below: tuple[str, ...]
    network: nn.Module


@dataclass(frozen=True, eq=False)
class Shrinking:
    """A Pareto table over budgets.

    Attributes:
        whole: the cost of the model as it was, and `metrics` its tasks' metrics.
        higher_is_better: of each metric.
        floors: by task.
        rows: largest budget first.
    """

    whole: float
    metrics: Mapping[str, float]
    higher_is_better: Mapping[str, bool]
    floors: Mapping[str, Floor]
    rows: tuple[Row, ...]

    @property
    def reachable(self) -> Row | None:
        """The cheapest row in which no task is below its floor."""
        return min((row for row in self.rows if not row.below), key=lambda row: row.cost, default=None)

    def within(self, target: float) -> Row:
        """The best row within a budget: among those that no floor forbids the one that costs most.

        Raises `InputError` where there is none, with the smallest budget that can be reached.
        """
        good = [row for row in self.rows if not row.below and row.cost <= target * (1 + 1e-9)]
        if good:
            return max(good, key=lambda row: row.cost)
        best = self.reachable
        here = next((row for row in self.rows if row.cost <= target * (1 + 1e-9)), None)
        missed = "; there " + ", ".join(f"{task} is {here.metrics[task]:.4g}" for task in here.below) if here else ""
        smallest = f"{best.cost:,.0f}, {best.share:.2f}x" if best else f"{self.whole:,.0f}, the whole model"
        raise InputError(
            f"a budget of {target:,.0f}, {target / self.whole:.2f}x, cannot be met with these floors{missed}: "
            f"the smallest that was reached is {smallest}"
        )


def prune_to(
    network: nn.Module,
    structure: Structure,
    losses: Losses,
    cost: Cost,
    target: float,
    *,
    growth: float = GROWTH,
    criterion: str | Criterion = "l1",
    tasks: Mapping[str, float] | None = None,
    absolute: float = 1e-3,
    cache: int = 2**30,
) -> Pruned:
    """The network pruned to a cost of at most ``target``, in as many rounds of `polytask.shrink.prune_by_task` as it takes.

    A round lets losses grow little, by equal tolerances of all groups, so that no group is cut deep before the others are
    looked at. When a round removes nothing, the next may let losses grow twice as much.

    Args:
        network, structure, losses, cost, criterion, cache: as for `polytask.shrink.prune_by_task`.
        target: the largest cost.
        growth: the factor by which the losses may grow in the first round.
        tasks, absolute: as for `polytask.shrink.Tolerances`.

    Raises:
        InputError: the target is below what is left with the largest ratio of every group, which the message has; or no
            group can be pruned further though losses may grow a million times.

    The result has one step for each group in each round; the numbers of its units are those of ``structure``.
    """
    whole, least = cost(network), _least(network, structure, cost, criterion)
    if least > target:
        raise InputError(
            f"a cost of {target:,.0f} cannot be met: the smallest reachable is {least:,.0f}, {least / whole:.3f}x, with "
            f"{RATIOS[-1]:.0%} of all groups removed"
        )
    names = {group.name: list(range(group.units)) for group in structure.groups}
    with evaluating(network):
        start = dict(losses(network))
    steps, passes, price = list[Step](), 0, whole
    while price > target:
        if growth > LARGEST:
            raise InputError(f"a cost of {target:,.0f} cannot be met: {price:,.0f} is left, and nothing more can be removed")
        each = growth ** (1 / len(names)) - 1
        tolerances = Tolerances(each, growth, exponential=False, tasks=tasks or {}, absolute=absolute)
        found = prune_by_task(
            network, structure, losses, cost, tolerances, criterion=criterion, until=target, bisect=False, cache=cache
        )
        for step in found.steps:
            own = names[step.group]
            steps.append(replace(step, units=tuple(own[unit] for unit in step.units)))
            names[step.group] = [unit for place, unit in enumerate(own) if place not in set(step.units)]
        network, structure, passes = found.network, found.structure, passes + found.passes
        growth, price = growth if found.steps else 1 + 2 * (growth - 1), cost(network)
    return Pruned(network, structure, tuple(steps), start, passes)


def shrink(
    network: nn.Module,
    *inputs: Any,
    losses: Losses,
    metrics: Callable[[nn.Module], Mapping[str, float]],
    higher_is_better: Mapping[str, bool],
    budget: Budget | str,
    floors: Mapping[str, Floor | str] | None = None,
    shares: Sequence[float] = SHARES,
    closer: int = 3,
    finetune: Callable[[nn.Module], None] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> Shrinking:
    """Shrink ``network`` to several budgets, and see in which of them every task stays above its floor.

    Units are removed by `prune_to`: each task's own loss has a veto.

    Args:
        network: is not changed.
        inputs: an example of what it takes: its structure is found with them, and costs are counted for them.
        losses: on calibration data, see `polytask.shrink.prune_by_task`.
        metrics: each task's metric on validation data, from a network.
        higher_is_better: of each metric.
        budget: what is wanted, such as ``"macs=0.5x"``; one of the rows, and what is counted in all of them.
        floors: by task, such as ``{"left": "0.97", "right": "-1%"}``; tasks without one may fall as they like.
        shares: further budgets, of the whole.
        closer: where floors forbid the budget, how many budgets are tried between the smallest that they allow and the next.
        finetune: trains a shrunk network in place before it is judged.
        progress: is told of each row.
        settings: as for `prune_to`.

    Raises:
        InputError: a floor for an unknown task, a network without removable channels, or a budget that is out of reach
            whatever losses become. Whether floors are met says `Shrinking.within`.
    """
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    for task in floors or {}:
        if task not in higher_is_better:
            raise InputError(f"a floor for an unknown task {task!r}: {suggest(task, higher_is_better)}")
    bounds = {task: Floor.parse(floor) if isinstance(floor, str) else floor for task, floor in (floors or {}).items()}
    structure, cost = find_structure(network, *inputs), budget.cost(*inputs)
    whole, before = cost(network), dict(metrics(network))
    target = budget.target(whole)
    least = _least(network, structure, cost, settings.get("criterion", "l1"))
    if target < least:
        raise InputError(
            f"a budget of {target:,.0f} {budget.quantity} cannot be met: the smallest reachable is {least:,.0f}, "
            f"{budget.quantity}={least / whole:.3f}x, with {RATIOS[-1]:.0%} of all groups removed"
        )

    def judged(wanted: float) -> Row:
        made = network
        if wanted < whole:
            made = prune_to(network, structure, losses, cost, wanted, **settings).network
            if finetune is not None:
                finetune(made)
        found, price = dict(metrics(made)), cost(made)
        below = tuple(t for t, floor in bounds.items() if not floor.met(found[t], before[t], higher_is_better[t]))
        progress(f"{budget.quantity} {price / whole:.2f}x")
        return Row(wanted, price, price / whole, found, below, made)

    grid = {target, *(share * whole for share in shares if least <= share * whole < whole)}
    rows = [judged(wanted) for wanted in sorted(grid, reverse=True)]
    for _ in range(closer):
        good = min((row.cost for row in rows if not row.below), default=whole)
        bad = max((row.cost for row in rows if row.below and row.cost < good), default=good)
        if good <= target or bad == good:
            break
        rows.append(judged((good + bad) / 2))
    rows.sort(key=lambda row: -row.budget)
    return Shrinking(whole, before, dict(higher_is_better), bounds, tuple(rows))


def _least(network: nn.Module, structure: Structure, cost: Cost, criterion: str | Criterion) -> float:
    """What is left with the largest ratio of every group."""
    return cost(remove(network, structure, uniform(network, structure, RATIOS[-1], criterion)))
