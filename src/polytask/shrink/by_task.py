"""Pruning group by group, with a veto for each task: how many units go is decided by the tasks' own losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import nn

from polytask.errors import InputError, suggest
from polytask.nn.modes import evaluating
from polytask.shrink.criteria import Criterion, weakest
from polytask.shrink.groups import Structure
from polytask.shrink.prefix import Prefix
from polytask.shrink.removal import remove

Losses: TypeAlias = Callable[[nn.Module], Mapping[str, float]]
"""From a network, in evaluation mode, to each task's loss over the calibration data."""

Cost: TypeAlias = Callable[[nn.Module], float]
"""From a network to what it costs, such as its multiply-accumulate operations."""

RATIOS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""The shares of a group's units that are tried: .05, .10, ..., .95."""


@dataclass(frozen=True)
class Step:
    """A group that was pruned.

    Attributes:
        group: its name.
        ratio: the share of its units that went; `units` says which.
        tolerance: by how much each task's loss was allowed to rise here, relative to the base.
        losses: of each task with this group pruned.
        before: the base, what tasks' losses had risen to before.
        saved: what it saves.
    """

    group: str
    ratio: float
    units: tuple[int, ...]
    tolerance: float
    losses: Mapping[str, float]
    before: Mapping[str, float]
    saved: float


@dataclass(frozen=True)
class Pruned:
    """What `prune_by_task` did.

    Attributes:
        network: the smaller network, a copy.
        structure: of the smaller network.
        steps: the groups that were pruned, in their order.
        start: the losses of the network as it was.
        passes: how many networks were evaluated on the calibration data.
    """

    network: nn.Module
    structure: Structure
    steps: tuple[Step, ...]
    start: Mapping[str, float]
    passes: int

    @property
    def removed(self) -> dict[str, list[int]]:
        """The units that went, by group, with the numbers of the structure that was given."""
        found: dict[str, list[int]] = {}
        for step in self.steps:
            found.setdefault(step.group, []).extend(step.units)
        return found


@dataclass(frozen=True)
class Tolerances:
    """How much losses may rise (Ye et al., *Performance-aware approximation of global channel pruning for multitask CNNs*,
    T-PAMI 2023).

    The first group that is pruned may raise each task's loss by the factor ``1 + initial``, each further one by a tolerance
    that is ``decay`` times the one before, such that all of them together make ``growth``. The default is that of the
    authors' code, whose documented setting is ``initial=0.06, growth=6.0`` with ``top=0.8``.

    Args:
        initial: the first tolerance, above 0.
        growth: how many times its value a task's loss may have in the end, at least ``1 + initial``.
        exponential: whether tolerances change; else all are ``initial`` and ``growth`` means nothing.
        tasks: factors of the tolerance of single tasks, 1 for the others; 0 lets no rise pass.
        absolute: losses below this are compared as if they were this, since near 0 every rise is large. In the unit of the
            losses.
    """

    initial: float = 0.05
    growth: float = 5.0
    exponential: bool = True
    tasks: Mapping[str, float] = field(default_factory=dict)
    absolute: float = 1e-3

    def __post_init__(self) -> None:
        if not self.initial > 0 or (self.exponential and self.growth < 1 + self.initial):
            raise InputError(f"initial {self.initial}, growth {self.growth}: expected more than 0, and at least 1 + initial")
        if self.absolute < 0 or any(not 0 <= factor < math.inf for factor in self.tasks.values()):
            raise InputError(f"absolute {self.absolute}, tasks {dict(self.tasks)}: expected numbers that are not negative")

    def allow(self, losses: Mapping[str, float], base: Mapping[str, float], tolerance: float) -> bool:
        """Whether no task's loss is above ``base`` by more than its tolerance; a loss that is NaN is."""
        return all(
            losses[task] <= base[task] + self.tasks.get(task, 1.0) * tolerance * max(base[task], self.absolute)
            for task in base
        )


def decay(initial: float, groups: int, growth: float) -> float:
    """The factor ``d`` from one tolerance to the next with ``prod_i (1 + initial d^i) = growth`` over ``i < groups``.

    >>> round(decay(0.05, 60, 5.0), 6), round(decay(0.06, 20, 6.0), 6)
    (0.976971, 1.044861)
    """
    if groups < 2:
        return 1.0
    from scipy.optimize import brentq  # slow to load, and every process that opens a model would

    def over(factor: float) -> float:
        return math.fsum(math.log1p(initial * factor**i) for i in range(groups)) - math.log(growth)

    high = 1.0
    while over(high) < 0:
        high *= 2
    return float(brentq(over, 0.0, high, xtol=1e-15, rtol=1e-14)) if over(0.0) < 0 else 0.0


def prune_by_task(
    network: nn.Module,
    structure: Structure,
    losses: Losses,
    cost: Cost,
    tolerances: Tolerances | None = None,
    *,
    criterion: str | Criterion = "l1",
    ratios: Sequence[float] = RATIOS,
    top: float = 1.0,
    until: float | None = None,
    bisect: bool = True,
    cache: int = 2**30,
) -> Pruned:
    """Prune group after group of ``network`` as far as every task's loss allows (PAGCP's Algorithm; `Tolerances` has the
    source).

    Groups that save most come first where tolerances fall, and last where they rise. Of each, on the network as it is by
    then, the weakest units go in the largest ratio with which no task's loss exceeds its base by more than its tolerance.
    Then the base of each task becomes what its loss has risen to. In the end no task's loss is above ``growth`` times what
    it was (with ``absolute`` below all losses, ``top`` 1, and factors of 1). In the authors' code a group that no ratio
    violates is left whole; here it is pruned by the largest ratio.

    Args:
        network: is not changed.
        structure: what `find_structure` gave for it.
        losses: on data that the result is not judged by: the choice fits them. The same for the same network.
        cost: of a network, such as ``lambda network: polytask.cost.macs(network, inputs)``.
        tolerances: how much losses may rise.
        criterion: which units of a group are weakest.
        ratios: rising, above 0 and below 1; of ``n`` units ``int(ratio n)`` go, and one stays.
        top: the share of the pruned groups, rounded down, that are kept pruned: those with the smallest rise of the summed
            loss for what they save. The others are whole again, and the network is pruned anew without them.
        until: stop as soon as the cost is no more than this, with as few units of the last group as that takes.
        bisect: find the ratio by bisection: the largest one where losses rise with the ratio, in at most 5 evaluations
            for 19 ratios; otherwise ratios are tried one after another until one is too large.
        cache: bytes for outputs of modules that run before the group, which are then computed once for all its ratios
            (`polytask.shrink.prefix.Prefix`); 0 computes all of them each time.

    Raises:
        InputError: settings that cannot be, a factor for an unknown task, or a loss that is not finite to begin with.
    """
    tolerances = tolerances or Tolerances()
    if not ratios or list(ratios) != sorted(set(ratios)) or not (ratios[0] > 0 and ratios[-1] < 1) or not 0 < top <= 1:
        raise InputError(f"ratios {list(ratios)}, top {top}: expected rising numbers between 0 and 1, and above 0 up to 1")
    measure = _Measure(losses, network)
    for task in tolerances.tasks:
        if task not in measure.start:
            raise InputError(f"a tolerance for an unknown task {task!r}: {suggest(task, measure.start)}")
    factor = decay(tolerances.initial, len(structure.groups), tolerances.growth) if tolerances.exponential else 1.0
    order = by_saving(network, structure, cost, criterion)
    current, shape, base, tolerance = network, structure, dict(measure.start), tolerances.initial
    price, steps = cost(network), list[Step]()
    for name in order if factor <= 1 else reversed(order):
        if until is not None and price <= until:
            break
        search = Search(current, shape, name, measure, criterion, cache)
        counts = [min(int(ratio * search.units + 1e-9), search.units - 1) for ratio in ratios]
        count = search.largest(counts, lambda found: tolerances.allow(found, base, tolerance), bisect)  # noqa: B023
        if count == 0:
            continue
        if until is not None and cost(search.without(count)) <= until:
            fewer = next(c for c in range(1, count + 1) if cost(search.without(c)) <= until)
            count = fewer if tolerances.allow(search.losses(fewer), base, tolerance) else count
        found, made = search.losses(count), search.without(count)
        saved = price - cost(made)
        units = tuple(search.order[:count])
        steps.append(Step(name, count / search.units, units, tolerance, found, dict(base), saved))
        current, shape, price = made, shape.after({name: units}), price - saved
        base = {task: max(base[task], found[task]) for task in base}
        tolerance *= factor
    pruned = Pruned(current, shape, tuple(steps), measure.start, measure.passes)
    return pruned if top == 1 else _filtered(network, structure, pruned, top, criterion, cost)


def by_saving(network: nn.Module, structure: Structure, cost: Cost, criterion: str | Criterion = "l1") -> list[str]:
    """The groups' names, those first that save most when 30 % of their units go and all others stay."""
    saved = {}
    for group in structure.groups:
        units = weakest(network, group, min(int(0.3 * group.units), group.units - 1), criterion)
        saved[group.name] = cost(network) - cost(remove(network, structure, {group.name: units}))
    return sorted(saved, key=lambda name: -saved[name])


class Search:
    """How many of the weakest units of one group can go.

    Args:
        network: as it is before.
        structure: of it.
        name: of the group.
        measure: evaluates networks.
        criterion, cache: as for `prune_by_task`.
    """

    def __init__(
        self, network: nn.Module, structure: Structure, name: str, measure: _Measure, criterion: str | Criterion, cache: int
    ) -> None:
        self.network, self.structure, self.name, self.measure = network, structure, name, measure
        group = structure[name]
        self.units = group.units
        self.order = weakest(network, group, group.units, criterion)
        self.prefix = Prefix(sorted({member.layer for member in group.members}), cache) if cache > 0 else None
        self._found: dict[int, Mapping[str, float]] = {}

    def without(self, count: int) -> nn.Module:
        """The network without so many units."""
        return remove(self.network, self.structure, {self.name: self.order[:count]})

    def losses(self, count: int) -> Mapping[str, float]:
        """The losses of the network without so many units."""
        if count not in self._found:
            self._found[count] = self.measure(self.without(count), self.prefix)
        return self._found[count]

    def largest(self, counts: Sequence[int], allow: Callable[[Mapping[str, float]], bool], bisect: bool) -> int:
        """The largest of rising ``counts`` that is allowed, 0 for none; as `prune_by_task` says."""
        choices = sorted(set(counts) - {0})
        if not bisect:
            found = 0
            for count in choices:
                if not allow(self.losses(count)):
                    break
                found = count
            return found
        low, high = 0, len(choices) + 1  # choices[low - 1] is allowed, choices[high - 1] is not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if allow(self.losses(choices[middle - 1])) else (low, middle)
        return choices[low - 1] if low else 0


class _Measure:
    """Evaluates networks, and counts how often."""

    def __init__(self, losses: Losses, network: nn.Module) -> None:
        self._losses, self.passes = losses, 0
        self.start = self(network)
        for task, loss in self.start.items():
            if not math.isfinite(loss) or loss < 0:
                raise InputError(f"the loss of {task!r} is {loss} before anything is pruned, expected 0 or more")

    def __call__(self, network: nn.Module, prefix: Prefix | None = None) -> dict[str, float]:
        self.passes += 1
        with evaluating(network), torch.no_grad(), nullcontext() if prefix is None else prefix.applied(network):
            found = self._losses(network)
        return {task: float(loss) for task, loss in found.items()}


def _filtered(
    network: nn.Module, structure: Structure, pruned: Pruned, top: float, criterion: str | Criterion, cost: Cost
) -> Pruned:
    """Only the groups that raise the summed loss least for what they save."""

    def price(step: Step) -> float:
        return (sum(step.losses.values()) - sum(step.before.values())) / max(step.saved, 1e-12)

    kept = sorted(pruned.steps, key=price)[: int(top * len(pruned.steps) + 1e-9)]
    steps = []
    for step in (step for step in pruned.steps if step in kept):
        units = tuple(weakest(network, structure[step.group], len(step.units), criterion))
        smaller = remove(network, structure, {step.group: units})
        steps.append(replace(step, units=units, saved=cost(network) - cost(smaller)))
        network, structure = smaller, structure.after({step.group: units})
    return replace(pruned, network=network, structure=structure, steps=tuple(steps))


def prune_in_rounds(
    network: nn.Module,
    structure: Structure,
    losses: Losses,
    cost: Cost,
    finetune: Callable[[nn.Module], None],
    rounds: int,
    tolerances: Tolerances | None = None,
    *,
    initial_slope: float = 0.0,
    growth_slope: float = 0.0,
    **settings: object,
) -> list[Pruned]:
    """`prune_by_task` and fine-tuning in turn: what each round did; the last network is the result, fine-tuned.

    Args:
        network, structure, losses, cost, settings: as for `prune_by_task`.
        finetune: trains a network in place.
        rounds: how often.
        tolerances: of the first round, number 0.
        initial_slope, growth_slope: what each round adds to ``initial`` and ``growth``, 0 as in the authors' code.
    """
    first, found = tolerances or Tolerances(), list[Pruned]()
    for number in range(rounds):
        now = replace(first, initial=first.initial + number * initial_slope, growth=first.growth + number * growth_slope)
        found.append(prune_by_task(network, structure, losses, cost, now, **settings))  # type: ignore[arg-type]
        network, structure = found[-1].network, found[-1].structure
        finetune(network)
    return found
