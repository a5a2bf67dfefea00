"""Goals of tasks: rewards, windows, choices."""

from __future__ import annotations

from typing import Any

import pytest

from polytask.errors import InputError
from polytask.shrink.search import Goal, Trial
from polytask.shrink.search.goal import objectives


def test_rewards_of_goals() -> None:
    goal = Goal("error", "lower", cost="macs", target=10.0, weight=3.0, least=5.0)
    assert goal.value({"error": 2.0}) == -2 and goal.penalty({"macs": 15.0}) == 1.5 and goal.penalty({"macs": 9.0}) == 0
    assert [goal.fits({"macs": cost}) for cost in (4.0, 5.0, 10.0, 10.1)] == [False, True, True, False]
    trials = [Trial({}, {"error": error, "macs": macs}) for error, macs in ((1.0, 12.0), (3.0, 9.0), (2.0, 8.0), (0.0, 2.0))]
    assert goal.best(trials) is trials[2]
    assert goal.best([trials[0], trials[3]]) is trials[0]  # neither fits: 2 above, 3 below
    free = Goal("error", "lower")
    assert free.penalty({"error": 1.0}) == 0 and free.best(trials) is trials[3]
    assert objectives({"a": goal, "b": free}) == {"error": "lower", "macs": "lower"}


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"better": "more"}, "better is 'more', expected 'lower' or 'higher'"),
        ({"cost": "macs"}, "expected a name and a finite target above 0, or neither"),
        ({"target": 3.0}, "expected a name and a finite target"),
        ({"cost": "macs", "target": 3.0, "least": 4.0}, "between 4.0 and 3.0"),
        ({"weight": -1.0}, "weight -1.0, expected a number of at least 0"),
    ],
)
def test_goals_that_cannot_be_are_refused(goal: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Goal("error", **goal)
