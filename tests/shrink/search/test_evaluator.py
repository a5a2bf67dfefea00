"""What is counted, what is kept, and what fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.shrink.search.problems import OBJECTIVES, SPACE, evaluate, sometimes

from polytask.errors import InputError
from polytask.shrink.search import Evaluator, Space


class Counted:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, configuration: dict[str, Any]) -> dict[str, float]:
        self.asked.append(json.dumps(configuration))
        found = evaluate(configuration)
        configuration.clear()  # what it was given is its own
        return found


def rows(count: int, seed: int = 0) -> np.ndarray:
    return SPACE.sample(count, np.random.default_rng(seed))


def test_each_network_is_evaluated_and_counted_once() -> None:
    counted = Counted()
    evaluator = Evaluator(SPACE, counted, OBJECTIVES, budget=1000)
    few = rows(20)
    masked = SPACE.filled(SPACE.canonical(few), np.random.default_rng(1))  # other values where genes are not used
    assert (masked != few).any()
    values = evaluator(np.concatenate([few, masked, few[:5]]))
    assert len(counted.asked) == len(evaluator.trials) == len(set(counted.asked)) == 20
    assert (values[:20] == values[20:40]).all() and (values[40:] == values[:5]).all()
    expected = evaluate(SPACE.configuration(few[3]))
    assert values[3].tolist() == [-expected["quality"], expected["cost"]]
    assert evaluator.trials[3].configuration == SPACE.configuration(few[3])
    assert (evaluator(masked) == values[:20]).all() and len(counted.asked) == 20


def test_the_budget_is_kept_and_the_space_may_be_smaller() -> None:
    counted = Counted()
    evaluator = Evaluator(SPACE, counted, OBJECTIVES, budget=12)
    values = evaluator(rows(20))
    assert evaluator.spent and len(counted.asked) == 12
    assert np.isfinite(values[:12]).all() and np.isnan(values[12:]).all()
    small = Space({"a": [1, 2], "b": [1, 2, 3]}, when={"b": {"a": [2]}})
    every = Evaluator(small, lambda c: {"a": c["a"]}, {"a": "lower"}, budget=100)
    every(small.sample(50, np.random.default_rng(0)))
    assert every.limit == len(every.trials) == 4 and every.spent


def test_failures_are_recorded_and_not_tried_again(tmp_path: Path) -> None:
    few = SPACE.distinct(200, (), np.random.default_rng(0))
    evaluator = Evaluator(SPACE, sometimes, OBJECTIVES, 200, tmp_path / "j")
    values = evaluator(few)
    errors = {trial.error for trial in evaluator.trials}
    assert errors == {"", "ZeroDivisionError: the first", "quality is nan", "no cost among ['quality']"}
    assert [bool(trial.error) for trial in evaluator.trials] == np.isnan(values).any(1).tolist()
    counted = Counted()
    again = Evaluator(SPACE, counted, OBJECTIVES, 200, tmp_path / "j")
    assert np.array_equal(again(few), values, equal_nan=True) and not counted.asked
    assert again.trials == evaluator.trials


def test_what_else_is_measured_is_kept_if_it_is_a_number() -> None:
    found = {"a": 1, "size": np.float32(2.0), "odd": float("inf")}
    evaluator = Evaluator(Space({"a": [1]}), lambda c: found, {"a": "lower"}, 1)
    evaluator(np.array([[0]]))
    assert evaluator.trials[0].values == {"a": 1.0, "size": 2.0}


def test_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    few = SPACE.distinct(12, (), np.random.default_rng(0))
    one, two = (Evaluator(SPACE, sometimes, OBJECTIVES, 10, tmp_path / str(n), workers=n) for n in (1, 2))
    assert np.array_equal(one(few), two(few), equal_nan=True) and one.trials == two.trials
    lines = [sorted((tmp_path / str(n)).read_text().splitlines()) for n in (1, 2)]
    assert lines[0] == lines[1]


@pytest.mark.soak
def test_a_ray_cluster_finds_what_one_process_finds() -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    script = (
        "import numpy as np\n"
        "from polytask.shrink.search import Evaluator\n"
        "from tests.shrink.search.problems import OBJECTIVES, SPACE, sometimes\n"
        "few = SPACE.distinct(12, (), np.random.default_rng(0))\n"
        "one, cluster = (Evaluator(SPACE, sometimes, OBJECTIVES, 10, **s) for s in ({}, {'workers': 2, 'ray': 'local'}))\n"
        "same = np.array_equal(one(few), cluster(few), equal_nan=True) and one.trials == cluster.trials\n"
        "print('same' if same else (one.trials, cluster.trials))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=400, check=False)
    assert done.stdout.strip().endswith("same"), done.stdout + done.stderr


@pytest.mark.parametrize(("strategy", "kill_at"), [("ridge", 23), pytest.param("nsga2", 1, marks=pytest.mark.soak)])
def test_a_search_that_is_killed_ends_as_one_that_was_not(strategy: str, kill_at: int, tmp_path: Path) -> None:
    def run(name: str, *kill_at: int) -> subprocess.CompletedProcess[str]:
        arguments = [
            sys.executable,
            "-m",
            "tests.shrink.search.problems",
            str(tmp_path / name),
            strategy,
            *map(str, kill_at),
        ]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    whole = run("whole")
    assert whole.returncode == 0, whole.stderr
    assert run("killed", kill_at).returncode == -9
    again = run("killed")
    assert json.loads(again.stdout) == json.loads(whole.stdout)
    # What was cut short is done again, and nothing else.
    assert len((tmp_path / "killed.done").read_text().splitlines()) == 45 + 1
    assert (tmp_path / "killed").read_text() == (tmp_path / "whole").read_text()


def test_the_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Evaluator(SPACE, evaluate, OBJECTIVES, 3, path)(rows(3))
    content = path.read_text()
    with pytest.raises(InputError, match=r"j: of a search for .*'higher'.*, here for .*'lower'"):
        Evaluator(SPACE, evaluate, {**OBJECTIVES, "quality": "lower"}, 3, path)
    with pytest.raises(InputError, match="j: the journal of another space"):
        Evaluator(SPACE.restricted({"w0": [1, 2]}), evaluate, OBJECTIVES, 3, path)
    for odd in (
        '{"configuration": {"w0": 9}, "values": {}}',
        '{"values": {}}',
        content.splitlines()[1].replace("cost", "c"),
    ):
        path.write_text(content + odd + "\n")
        with pytest.raises(InputError, match="j: line 5: expected a configuration with its values or an error"):
            Evaluator(SPACE, evaluate, OBJECTIVES, 3, path)


def test_arguments_that_cannot_be() -> None:
    for objectives, budget, workers, message in (
        ({}, 1, 1, "no objectives"),
        ({"a": "up"}, 1, 1, "objective 'a': 'up', expected 'lower' or 'higher'"),
        ({"a": "lower"}, 0, 1, "budget 0 and 1 workers"),
        ({"a": "lower"}, 1, 0, "budget 1 and 0 workers"),
    ):
        with pytest.raises(InputError, match=message):
            Evaluator(SPACE, evaluate, objectives, budget, workers=workers)  # type: ignore[arg-type]
