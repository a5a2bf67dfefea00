"""Control arms: groups judged apart, and budgets met to the last unit by any arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from polytask.errors import InputError
from polytask.shrink import Cost, Losses, Structure, remove, weakest
from polytask.shrink.budgets import GROWTHS, growing
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

    Order, tolerances and the search for the smallest growth that reaches the target are the method's.
    """
    measured = sensitivities(network, structure, losses)
    order = by_saving(network, structure, cost)
    growths = (*GROWTHS, *(10.0**power for power in range(4, 40)))  # apart, no layer sees how far the others have gone
    for growth in growths:
        tolerances = growing(growth, len(order))
        removed: dict[str, list[int]] = {}
        for name in order:
            count = 0
            for number, found in measured[name].items():
                if not tolerances.allow(found, measured[name][0], tolerances.initial):
                    break
                count = number
            removed[name] = weakest(network, structure[name], count)
        if cost(remove(network, structure, removed)) <= target:
            return removed
    raise InputError(f"a cost of {target:,.0f} is out of reach with losses {growths[-1]:g} times as large")


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
