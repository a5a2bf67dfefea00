"""How tasks of growing memory follow one another: one at a time, all so far, or a window that moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from polytask.data import Goal, Promotion
from polytask.errors import InputError

GOAL = 0.98
"""The accuracy above which a task counts as solved."""


def solved(accuracies: Sequence[float], goal: float = GOAL) -> bool:
    """Whether tasks, the newest of them last, are solved together: both the mean and the newest are above the goal."""
    return sum(accuracies) / len(accuracies) > goal and accuracies[-1] > goal


@dataclass(frozen=True)
class MeanAndNewest(Promotion):
    """The next stage once the mean accuracy over the stage's tasks is above the goal, and the newest task's is.

    The mean alone would let tasks in before the newest is solved. Other settings are those of `Promotion`; the goal, an
    accuracy above 0.98 by default, is one for all tasks.
    """

    goals: Goal = field(default_factory=lambda: Goal("accuracy", above=GOAL))

    def passed(self, values: Mapping[str, float], goals: Mapping[str, Goal]) -> bool:
        above = self.goals.above
        if above is None:
            raise InputError(f"goal {self.goals}, expected one above a number")
        return solved(list(values.values()), above)


def single(tasks: Sequence[str], goal: float = GOAL) -> MeanAndNewest:
    """One task at a time. In the paper all of them are read out by the same head."""
    return sliding(tasks, 1, 1, goal)


def cumulative(tasks: Sequence[str], heads: int = 1, add: int = 1, goal: float = GOAL) -> MeanAndNewest:
    """The first ``heads`` tasks, then ``add`` more at each promotion; all that were there stay."""
    _check(tasks, heads, add)
    ends = [*range(heads, len(tasks), add), len(tasks)]
    return MeanAndNewest([list(tasks[:end]) for end in ends], goals=Goal("accuracy", above=goal))


def sliding(tasks: Sequence[str], heads: int, forget: int = 1, goal: float = GOAL) -> MeanAndNewest:
    """A window of ``heads`` tasks; each promotion drops the ``forget`` oldest and lets in as many.

    At the end of all tasks the window is full, even if it then moves by less.
    """
    _check(tasks, heads, forget)
    if forget > heads:
        raise InputError(f"a window of {heads} tasks that forgets {forget}, expected at most {heads}")
    ends = [*range(heads, len(tasks), forget), len(tasks)]
    return MeanAndNewest([list(tasks[end - heads : end]) for end in ends], goals=Goal("accuracy", above=goal))


def _check(tasks: Sequence[str], heads: int, step: int) -> None:
    if not 1 <= heads <= len(tasks) or step < 1:
        raise InputError(f"{heads} tasks at first, {step} more each time: expected from 1 to {len(tasks)}, and at least 1")
