"""What a task wants of a network: a quality, and a cost that it should keep to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polytask.errors import InputError
from polytask.shrink.search.found import Direction, Trial


@dataclass(frozen=True)
class Goal:
    """A task's reward: ``R = Q - weight * max(0, cost / target - 1)``, where ``Q`` is the quality, signed so that higher is
    better. Up to the target a cost is free.

    Args:
        quality: the name of a measured number, such as an accuracy or a loss.
        better: whether a ``"higher"`` or a ``"lower"`` one is better.
        cost: the name of another one, such as operations or a latency, of which lower is better; by default none counts.
        target: what it should not exceed, in its unit.
        weight: of the excess, in the unit of ``Q`` as it is learned from: in standard deviations where rewards are
            standardised, which they are by default.
        least: with the target the window in which a network that is chosen in the end has to cost.

    >>> goal = Goal("error", "lower", cost="macs", target=100.0, weight=2.0)
    >>> values = {"error": 0.25, "macs": 150.0}
    >>> goal.value(values), goal.penalty(values), goal.fits(values)
    (-0.25, 1.0, False)
    """

    quality: str
    better: Direction = "higher"
    cost: str | None = None
    target: float = math.inf
    weight: float = 1.0
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise InputError(f"goal {self.quality!r}: better is {self.better!r}, expected 'lower' or 'higher'")
        if (self.cost is None) != math.isinf(self.target) or not 0 <= self.least <= self.target or not self.target > 0:
            raise InputError(
                f"goal {self.quality!r}: cost {self.cost!r} between {self.least} and {self.target}, expected a name and a "
                "finite target above 0, or neither"
            )
        if not 0 <= self.weight < math.inf:
            raise InputError(f"goal {self.quality!r}: weight {self.weight}, expected a number of at least 0")

    def value(self, values: Mapping[str, float]) -> float:
        """``Q`` of what was measured; NaN where the quality was not."""
        return values.get(self.quality, math.nan) * (1 if self.better == "higher" else -1)

    def penalty(self, values: Mapping[str, float]) -> float:
        """``weight * max(0, cost / target - 1)``."""
        return 0.0 if self.cost is None else self.weight * max(0.0, values[self.cost] / self.target - 1)

    def fits(self, values: Mapping[str, float]) -> bool:
        """Whether the cost is within the window."""
        return self.cost is None or self.least <= values[self.cost] <= self.target

    def best(self, trials: Sequence[Trial]) -> Trial:
        """Of measured networks the best that fits; where none does, the one that costs least beside the window."""
        fitting = [trial for trial in trials if self.fits(trial.values)]
        if fitting:
            return max(fitting, key=lambda trial: self.value(trial.values))
        return min(trials, key=lambda trial: (self._beside(trial.values), -self.value(trial.values)))

    def _beside(self, values: Mapping[str, float]) -> float:
        assert self.cost is not None
        return max(values[self.cost] - self.target, self.least - values[self.cost])


def objectives(goals: Mapping[str, Goal]) -> dict[str, Direction]:
    """The numbers that goals are about, and which direction is better."""
    found: dict[str, Direction] = {}
    for goal in goals.values():
        asked: list[tuple[str, Direction]] = [(goal.quality, goal.better)]
        asked += [(goal.cost, "lower")] if goal.cost is not None else []
        for name, better in asked:
            if found.setdefault(name, better) != better:
                raise InputError(f"goals: {name!r} is to be both higher and lower, expected one direction")
    if not found:
        raise InputError("no goals, expected one for each of at least one task")
    return found
