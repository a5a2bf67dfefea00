"""``fit`` and ``validate`` as a user meets them: files, exit codes, one-line errors, kills."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests import small_table
from tests.cli.command import polytask, refused
from tests.test_store import largest_file, read_only

import polytask as pt
from polytask.files import sha256

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "polytask.cli.main"]
DIGITS = ("multidigits", "--task", "left", "--task", "ink")
TABLE = ("-t", "churn", "-t", "spend", "-t", "segment")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_table.write(tmp_path_factory.mktemp("data") / "table.csv", 200)


def test_fit_saves_a_model_and_shows_its_test_metrics(table: Path, tmp_path: Path) -> None:
    ran = polytask("fit", table, *TABLE, "-o", tmp_path / "model", "--steps", 4, "-m", "uncertainty", "--conflicts")
    assert ran.code == 0, ran.err
    assert "target churn: binary" in ran.err and "4/4" in ran.err
    assert re.search(r"model: hard\+uncertainty, step \d of 4, on the test rows", ran.out)
    assert re.search(r"churn +40 +auroc +0\.\d{4}", ran.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    about = pt.load(tmp_path / "model").about
    recipe = about["recipe"]
    assert (recipe["method"], recipe["seed"], recipe["steps"]) == ("hard+uncertainty", 0, 4)
    assert recipe["settings"]["batch_size"] == 120  # the data's would be more than there are rows
    assert set(recipe["test"]) == set(small_table.TARGETS)
    assert about["data"]["sha256"] == sha256(table)
    history = [json.loads(line) for line in (tmp_path / "model" / "history.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history] == [1, 2, 3, 4]
    assert "conflicts" in history[0]


def test_the_same_command_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        ran = polytask("fit", *DIGITS, "-o", tmp_path / name, "--steps", 2, "--seed", seed, "-q")
        assert ran.code == 0 and ran.err == ""
    hashes = [sha256(tmp_path / name / "model.safetensors") for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_model_trained_in_half_precision_is_saved_in_single_precision(table: Path, tmp_path: Path) -> None:
    assert (
        polytask("fit", table, "-t", "churn", "-o", tmp_path / "model", "--steps", 2, "--precision", "bf16-true").code == 0
    )
    saved = pt.load(tmp_path / "model")
    assert {parameter.dtype for parameter in saved.model.parameters()} == {torch.float32}
    assert polytask("evaluate", tmp_path / "model", table).code == 0


def test_tensorboard_files_are_kept_with_the_model(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert polytask("fit", *DIGITS, "-o", tmp_path / "model", "--steps", 2, "-q", "--tensorboard").code == 0
    assert list((tmp_path / "model" / "tensorboard").glob("events*"))
    pt.load(tmp_path / "model")


@pytest.mark.soak
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    words = ["fit", *DIGITS, "-o", str(tmp_path / "model"), "--steps", "2", "--devices", "2", "-q"]
    ran = subprocess.run([*COMMAND, *words], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("on the test rows") == 1
    assert polytask("fit", *DIGITS, "-o", tmp_path / "one", "--steps", 2, "-q").code == 0
    two, one = (pt.load(tmp_path / name).about["recipe"]["test"]["ink"]["rmse"] for name in ("model", "one"))
    assert two == pytest.approx(one, rel=1e-3)


# Kills


@pytest.mark.soak
def test_a_killed_fit_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    words = ["fit", *DIGITS, "--steps", "150"]
    process = subprocess.Popen([*COMMAND, *words, "-o", str(tmp_path / "killed")], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed.run" / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert "differs in steps 150 -> 151" in refused(*words[:-1], 151, "-o", tmp_path / "killed")
    again = polytask(*words, "-o", tmp_path / "killed")
    assert again.code == 0 and "going on from" in again.err
    assert not (tmp_path / "killed.run").exists()
    assert polytask(*words, "-o", tmp_path / "whole", "-q").code == 0
    assert sha256(tmp_path / "killed" / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")


@pytest.mark.soak
def test_a_fit_killed_at_any_change_of_a_file_goes_on_and_the_earlier_model_stays_whole(tmp_path: Path) -> None:
    words = [sys.executable, str(Path(__file__).with_name("kills.py")), str(tmp_path / "kills")]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found.pop("kills") > 10
    assert found == {"broken": [], "differing": [], "failed": [], "left": []}


# What cannot be


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-m", "uncertanty"], "unknown method 'uncertanty' in 'uncertanty': did you mean 'uncertainty'?"),
        (["-m", "hard+mmoe"], "method 'hard+mmoe' names two of one kind: 'hard' and 'mmoe'"),
        (["--monitor", "churn/aurock"], "unknown metric 'aurock' of task 'churn': did you mean 'auroc'?"),
        (["--monitor", "chur"], "unknown monitor 'chur': did you mean 'churn'?"),
        (["--batch-size", "1000"], "batch size 1000, expected 1 to 120, the number of training examples"),
        (["--steps", "3", "--epochs", "2"], "both steps and epochs are given, expected one of them"),
        (["--task", "left"], "{table}: --task is for images and graphs; name the columns to predict by --target"),
        (["--kind", "zone"], "--kind 'zone': expected COLUMN:KIND, such as zip:categorical"),
        (["--drop", "zones"], "{table}: unknown column 'zones': did you mean 'zone'?"),
        (["--split", "ordered"], "ordered"),
        (["--precision", "fp8"], "precision 'fp8'"),
        (["--devices", "many"], "devices many"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_options_that_cannot_be_are_refused_in_a_line(
    command: str, options: list[str], line: str, table: Path, tmp_path: Path
) -> None:
    assert line.format(table=table) in refused(command, table, "-t", "churn", "-o", tmp_path / "model", *options)
    assert not list(tmp_path.iterdir())


def test_data_that_cannot_be_is_refused_in_a_line(table: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "model")
    assert refused("fit", table, *out) == f"{table}: no target was given, expected at least one column to predict"
    assert refused("fit", table, "-t", "chrn", *out).endswith("unknown target column 'chrn': did you mean 'churn'?")
    assert refused("fit", "multidigit", *out).endswith("nor built-in data: did you mean 'multidigits'?")
    assert refused("fit", "multidigits", "-t", "left", *out) == "multidigits: --target is for tables; choose tasks by --task"
    assert "unknown task 'lft'" in refused("fit", "multidigits", "--task", "lft", *out)
    assert "found none for train" in refused("fit", tmp_path, *out)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_outputs_that_cannot_be_are_refused_before_training(command: str, table: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    words = (command, table, "-t", "churn", "-o")
    assert refused(*words, tmp_path / "thesis").endswith("holds other files, expected an empty folder or an earlier model")
    assert refused(*words, tmp_path / "thesis" / "chapter.tex").endswith("is a file, expected a folder to write")
    (tmp_path / "shut").mkdir()
    with read_only(tmp_path / "shut"):
        assert re.search(r"cannot be written \((Operation not|Permission)", refused(*words, tmp_path / "shut" / "model"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shut", "thesis"]


def test_a_full_disk_stops_the_run_in_a_line_and_leaves_nothing_broken(tmp_path: Path) -> None:
    words = ("fit", *DIGITS, "-o", tmp_path / "model", "--steps", 4, "-q")
    with largest_file(30_000):
        assert re.search(r"checkpoint\.pt: cannot be written \(File too large\)", refused(*words))
    assert not list(tmp_path.iterdir())
    assert polytask(*words).code == 0


def test_a_loss_that_is_not_finite_names_the_task_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    line = refused("fit", *DIGITS, "-o", tmp_path / "model", "--steps", 20, "--lr", 1e30, "-q")
    assert re.search(r"the loss of task '\w+' is \w+ at step \d+", line)
    assert not (tmp_path / "model").exists()


# Looking before


def test_validate_tells_what_a_run_takes_and_writes_nothing(table: Path, tmp_path: Path) -> None:
    ran = polytask("validate", table, *TABLE, "-o", tmp_path / "model", "-m", "mmoe", "--epochs", 3)
    assert ran.code == 0, ran.err
    assert "everything that fit needs is there" in ran.out
    assert re.search(r"model: mmoe\+equal, [\d,]+ parameters for churn, spend, segment", ran.err)
    assert re.search(r"steps: 3 at [\d.]+ ms, about \d+ s on one device", ran.err)
    assert re.search(r"disk: +[\d,]+ MB needed at most, [\d,]+ MB free", ran.err)
    assert not list(tmp_path.iterdir())


def test_help_answers_without_loading_torch() -> None:
    started = time.perf_counter()
    ran = subprocess.run([*COMMAND, "fit", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--target" in ran.stdout
    if os.getloadavg()[0] < (os.cpu_count() or 1):  # elsewhere the time says little
        assert time.perf_counter() - started < 1
