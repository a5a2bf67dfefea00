"""A search for several tasks in one run, on a problem that can be counted out."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.shrink.search.tasks import GOALS, SPACE, evaluate, run

from polytask.errors import InputError
from polytask.shrink.search import Distributions, Goal, MultiTaskReinforce, Space, choose, search_tasks


def every() -> list[dict[str, Any]]:
    return [dict(zip(SPACE.names, kept, strict=True)) for kept in itertools.product([False, True], repeat=6)]


def best(task: str) -> float:
    goal = GOALS[task]
    return max(goal.value(values) for values in map(evaluate, every()) if goal.fits(values))


def test_each_task_gets_the_network_that_is_best_for_it() -> None:
    found = search_tasks(SPACE, evaluate, GOALS, budget=45)
    assert {task: GOALS[task].value(trial.values) for task, trial in found.chosen.items()} == {t: best(t) for t in GOALS}
    assert found.probable["left"] == {f"keep{i}": i < 3 for i in range(6)}
    assert [found.probable["right"][f"keep{i}"] for i in (0, 3, 4, 5)] == [False, True, True, True]


def test_evaluations_are_counted_once_within_the_budget_and_the_seed_decides() -> None:
    asked: list[str] = []

    def counted(configuration: dict[str, Any]) -> dict[str, float]:
        asked.append(json.dumps(configuration))
        return evaluate(configuration)

    done: list[tuple[int, int]] = []
    found = search_tasks(SPACE, counted, GOALS, budget=30, progress=lambda *each: done.append(each))
    assert len(asked) == len(set(asked)) == len(found.trials) == 30 and done[-1] == (30, 30)
    again = search_tasks(SPACE, evaluate, GOALS, budget=30)
    assert again.trials == found.trials and torch.equal(again.distributions.logits, found.distributions.logits)
    assert search_tasks(SPACE, evaluate, GOALS, budget=30, seed=1).trials != found.trials
    whole = search_tasks(SPACE, evaluate, GOALS, budget=500)  # the space has 64
    assert len(whole.trials) <= 64


def test_a_search_that_is_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    arguments = [sys.executable, "-m", "tests.shrink.search.tasks", str(tmp_path / "killed"), "17"]
    assert subprocess.run(arguments, check=False).returncode == -9
    again = run(tmp_path / "killed")
    assert again.trials == whole.trials and again.chosen == whole.chosen
    assert torch.equal(again.distributions.logits, whole.distributions.logits)
    assert len((tmp_path / "killed.done").read_text().splitlines()) == 40 + 1
    assert (tmp_path / "killed").read_text() == (tmp_path / "whole").read_text()


def test_failures_are_not_learned_from() -> None:
    def sometimes(configuration: dict[str, Any]) -> dict[str, float]:
        if configuration["keep0"] and configuration["keep5"]:
            raise ZeroDivisionError("both")
        return evaluate(configuration)

    found = search_tasks(SPACE, sometimes, GOALS, budget=45)
    assert any(trial.error for trial in found.trials) and not any(trial.error for trial in found.chosen.values())
    assert found.chosen["left"].values["left"] == best("left")
    with pytest.raises(InputError, match="all 20 evaluations failed; the first: KeyError"):
        search_tasks(SPACE, lambda c: {"left": c["nothing"]}, GOALS, budget=20)


def test_in_the_end_samples_fit_what_they_may_cost() -> None:
    found = Distributions(SPACE, GOALS)

    def costs(configuration: dict[str, Any]) -> dict[str, float]:
        return {"cost": evaluate(configuration)["cost"]}

    goals = {
        "left": Goal("left", cost="cost", target=3.0, least=2.0),
        "right": Goal("left", cost="cost", target=5.0, least=5.0),
    }
    chosen = choose(found, evaluate, goals, samples=6, costs=costs)
    probable = {json.dumps(configuration) for configuration in chosen.probable.values()}
    asked = [trial.values["cost"] for trial in chosen.trials if json.dumps(trial.configuration) not in probable]
    assert len(chosen.trials) == 12 and sorted(set(asked)) in ([2, 3, 5], [3, 5], [2, 5])
    assert chosen.chosen["left"].values["left"] == max(t.values["left"] for t in chosen.trials if 2 <= t.values["cost"] <= 3)
    assert found.logits.abs().max() == 0


def test_arguments_that_do_not_fit_are_refused() -> None:
    other = Space({"keep0": [False, True]})
    used = MultiTaskReinforce(Distributions(SPACE, GOALS))
    used.update(SPACE.sample(2, np.random.default_rng(0)), [[1.0, 1.0], [2.0, 2.0]])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"budget": 8}, "budget 8, expected more than the 8 that are kept for the end"),
        ({"goals": {}}, "expected at least one"),
        ({"reinforce": MultiTaskReinforce(Distributions(SPACE, ["left"]))}, r"goals of \['left', 'right'\], expected one"),
        ({"reinforce": MultiTaskReinforce(Distributions(other, GOALS))}, "the distributions are of another space"),
        ({"reinforce": used}, "reinforce has learned from 1 batches, expected a new one"),
        ({"goals": {"a": Goal("left"), "b": Goal("left", "lower")}}, "'left' is to be both higher and lower"),
    ]
    for settings, message in cases:
        with pytest.raises(InputError, match=message):
            search_tasks(SPACE, evaluate, **{"goals": GOALS, "budget": 30, **settings})
