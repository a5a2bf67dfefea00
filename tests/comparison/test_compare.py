"""`compare`, end to end on a few images: what it says, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import polytask as pt
from polytask.comparison import runner
from polytask.comparison.runner import Runner
from polytask.comparison.trial import Trial

SETTINGS: dict[str, Any] = {"seeds": 2, "steps": 4, "learning_rates": [1e-3, 3e-3], "weight_trials": 2, "workers": 1}


def small() -> pt.DataSet:
    data = pt.multidigits(("left", "parity", "ink"), size=96)
    return replace(data, settings={**data.settings, "batch_size": 32})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("comparison")
    return folder, pt.compare(small(), ["hard+equal", "mmoe+uncertainty"], out=folder, **SETTINGS)


def test_every_arm_is_there(done: tuple[Path, dict[str, Any]]) -> None:
    _, results = done
    roles = {row["name"]: row["role"] for row in results["methods"]}
    assert roles["single-task"] == "baseline"
    assert roles["hard+equal"] == roles["mmoe+uncertainty"] == "method"
    assert roles["tuned weights"] == "control"
    for row in results["methods"]:
        assert set(row["tasks"]) == {"left", "parity", "ink"}
        assert all(len(task["values"]) == 2 for task in row["tasks"].values())


def test_the_files_hold_the_same_results(done: tuple[Path, dict[str, Any]]) -> None:
    folder, results = done
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert "<html" in (folder / "report.html").read_text()


def test_single_task_models_together_have_the_parameters_of_their_parts(done: tuple[Path, dict[str, Any]]) -> None:
    _, results = done
    data = small()
    single = next(row for row in results["methods"] if row["name"] == "single-task")
    counts = [sum(p.numel() for p in pt.Model(data.encoder(), [task]).parameters()) for task in data.tasks]
    assert single["parameters"] == sum(counts)
    assert single["steps"] == 3 * SETTINGS["steps"]


def test_again_from_the_same_folder_no_trial_runs(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, results = done

    def never(trial: Trial, data: pt.DataSet) -> dict[str, Any]:
        raise AssertionError(f"{trial} ran again")

    monkeypatch.setattr(runner, "run_trial", never)
    again = pt.compare(small(), ["hard+equal", "mmoe+uncertainty"], out=folder, **SETTINGS)
    assert {**again, "created": None} == {**json.loads(json.dumps(results)), "created": None}


@pytest.mark.soak
def test_two_workers_find_what_one_finds(done: tuple[Path, dict[str, Any]]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: sums in another order differ in their last bits
    trials = [Trial(("left", "ink"), seed=seed, lr=1e-3, steps=3) for seed in (0, 1, 2)]
    alone, shared = Runner(small()), Runner(small(), workers=2)
    alone(trials)
    shared(trials)
    torch.set_num_threads(threads)
    assert [alone.results[t]["test"] for t in trials] == [shared.results[t]["test"] for t in trials]


@pytest.mark.soak
def test_a_ray_cluster_finds_what_this_process_finds(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    script = tmp_path / "with_ray.py"
    script.write_text(
        "import json, polytask as pt\n"
        "from polytask.comparison.runner import Runner\n"
        "from polytask.comparison.trial import Trial\n"
        "import torch; torch.set_num_threads(1)\n"
        "data = pt.multidigits(('left', 'ink'), size=96)\n"
        "trials = [Trial(('left', 'ink'), seed=s, lr=1e-3, steps=3) for s in range(3)]\n"
        "found = []\n"
        "for settings in ({}, {'workers': 2, 'ray': 'local'}):\n"
        "    run = Runner(data, **settings); run(trials); found.append([run.results[t]['test'] for t in trials])\n"
        "print('same' if found[0] == found[1] else found)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=400)
    assert done.stdout.strip().endswith("same"), done.stdout + done.stderr


def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with pytest.raises(pt.InputError, match=re.escape("no Ray cluster answers at '127.0.0.1:1'")):
        Runner(small(), ray="127.0.0.1:1")


@pytest.mark.soak
def test_killed_at_any_moment_it_goes_on_and_finished_trials_never_run_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "polytask.cli.main", "compare", "multidigits", "--task", "left", "--task", "ink"]
    command += ["--steps", "3", "--seeds", "2", "--weight-trials", "0", "--methods", "hard"]
    command += ["--workers", "1", "--lr", "1e-3", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trials = tmp_path / "out" / "trials"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(trials.glob("*.json"))) < 4 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in trials.glob("[0-9a-f]*.json")}
    assert before
    for path in before:
        json.loads(path.read_text())  # whole, or not there
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "seeds is 1, expected at least 2"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"learning_rates": []}, "learning rates \\[\\], expected at least one"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_first_trial(change: dict[str, Any], message: str) -> None:
    with pytest.raises(pt.InputError, match=message):
        pt.compare(small(), **{**SETTINGS, **change})


def test_one_task_cannot_be_compared() -> None:
    with pytest.raises(pt.InputError, match="1 task, expected at least 2"):
        pt.compare(small().only(["left"]), **SETTINGS)


def test_an_unknown_method_suggests_the_nearest() -> None:
    with pytest.raises(pt.InputError, match=re.escape("did you mean 'uncertainty'?")):
        pt.compare(small(), ["hard+uncertanty"], **SETTINGS)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    data = replace(small(), settings={"batch_size": 1000})
    with pytest.raises(pt.InputError, match="batch size 1000 is larger than the 96 training examples"):
        pt.compare(data, **SETTINGS)


def test_joint_training_is_tuned_for_what_is_reported(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    trials = [json.loads(path.read_text())["trial"] for path in (folder / "trials").glob("[0-9a-f]*.json")]
    alone = [trial for trial in trials if len(trial["tasks"]) == 1]
    joint = [trial for trial in trials if len(trial["tasks"]) > 1]
    assert all(trial["baseline"] is None for trial in alone)
    assert joint and all([name for name, _ in trial["baseline"]] == ["left", "parity", "ink"] for trial in joint)
