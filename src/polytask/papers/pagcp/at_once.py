"""Control arms: groups judged apart, and budgets met to the last unit by any arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from polytask.errors import InputError
from polytask.shrink import Cost, Losses, Structure, Tolerances, remove, weakest
from polytask.shrink.by_task import RATIOS, by_saving


def sensitivities(network: nn.Module, structure: Structure, losses: Losses) -> dict[str, dict[int, Mapping[str, float]]]:
    """The losses when so many of one group's weakest units go from the unpruned network, by group and number; and with 0."""
    start = dict(losses(network))
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    for group in structure.groups:
        order = weakest(network, group, group.units)
        counts = sorted({min(int(ratio * group.units + 1e-9), group.units - 1) for ratio in RATIOS} - {0})
        each = {n: losses(remove(network, structure, {group.name: order[:n]})) for n in counts}
        found[group.name] = {0: start, **each}
    return found


def at_once(network: nn.Module, structure: Structure, losses: Losses, cost: Cost, target: float) -> dict[str, list[int]]:
    """What PAGCP removes when it does not look again: each group's ratio is judged on the unpruned network.

    One tolerance for all groups, the smallest that reaches the target, to 5 %.
    """
    measured = sensitivities(network, structure, losses)
    order = by_saving(network, structure, cost)

    def allowed(tolerance: float) -> dict[str, list[int]]:
        removed = {}
        for name in order:
            count = 0
            for number, found in measured[name].items():
                if not Tolerances().allow(found, measured[name][0], tolerance):
                    break
                count = number
            removed[name] = weakest(network, structure[name], count)
        return removed

    low, high = 1e-3, 1e9
    if cost(remove(network, structure, allowed(high))) > target:
        raise InputError(f"a cost of {target:,.0f} is out of reach where groups are judged apart")
    while high / low > 1.05:
        middle = (low * high) ** 0.5
        if cost(remove(network, structure, allowed(middle))) <= target:
            high = middle
        else:
            low = middle
    return allowed(high)


def by_ratio(
    choose: Callable[[float], dict[str, list[int]]], network: nn.Module, structure: Structure, cost: Cost, target: float
) -> dict[str, list[int]]:
    """What ``choose`` removes at the smallest ratio, to a thousandth, that reaches the target."""
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if cost(remove(network, structure, choose(middle))) <= target:
            high = middle
        else:
            low = middle
    return choose(high)


def to_the_last_unit(
    removed: Mapping[str, Sequence[int]], network: nn.Module, structure: Structure, cost: Cost, target: float
) -> dict[str, list[int]]:
    """``removed`` without the units that fit the target again, the last removed of the last group first."""
    left = {name: list(units) for name, units in removed.items()}
    for name in reversed(list(left)):
        while left[name] and cost(remove(network, structure, {**left, name: left[name][:-1]})) <= target:
            left[name].pop()
    return {name: units for name, units in left.items() if units}
