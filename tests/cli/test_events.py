"""Streams of events on the command line: fitted, measured, asked, gone on from, and refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from tests.cli.command import polytask, refused
from tests.events import streams

from polytask.files import sha256

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "polytask.cli.main"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    streams.write(folder / "visits.csv", streams.jodie(0, 200), streams.JODIE)
    few = ("--epochs", 2, "--batch-size", 40)
    ran = polytask("fit", "--events", folder / "visits.csv", "--model", "nat", *few, "-o", folder / "model")
    assert ran.code == 0, ran.err
    assert "users and items apart" in ran.err and "140 train, 30 validation, 30 test" in ran.err
    assert re.search(r"model: nat, equal, step \d of 8, on the test events and as many random pairs", ran.out)
    assert re.search(r"links +30 +ap +0\.\d{4}", ran.out)
    assert sorted(path.name for path in folder.iterdir()) == ["model", "visits.csv"]
    return folder / "model"


def test_explained(model: Path) -> None:
    about = json.loads(polytask("explain", model, "--json").out)
    assert about["events"]["name"] == "nat" and about["events"]["seen"] == {"events": 200, "until": 1990.0}
    assert sorted(about["files"]) == ["model.safetensors", "schema.json"]
    ran = polytask("explain", model)
    assert ran.code == 0 and "seen (events 200, until 1990)" in ran.out
    assert f"{about['recipe']['test']['links']['ap']:.4f}" in ran.out


def test_two_days_one_after_the_other_predict_what_both_at_once_do(model: Path, tmp_path: Path) -> None:
    for name, lines in {"1": streams.jodie(200, 220), "2": streams.jodie(220, 250), "3": streams.jodie(200, 250)}.items():
        streams.write(tmp_path / f"{name}.csv", lines, streams.JODIE)
    assert polytask("predict", model, tmp_path / "1.csv", "-o", tmp_path / "o1.csv", "--observe", tmp_path / "a").code == 0
    words = ["predict", tmp_path / "a", tmp_path / "2.csv", "-o", tmp_path / "o2.csv", "--observe", tmp_path / "a"]
    other = [*COMMAND, *map(str, words)]  # another process goes on, in the model's own place
    ran = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "a: the memory has seen 250 events, until 2490.0" in ran.stderr, ran.stderr
    assert polytask("predict", model, tmp_path / "3.csv", "-o", tmp_path / "o3.csv", "--observe", tmp_path / "b").code == 0
    found = [pl.read_csv(tmp_path / f"o{name}.csv") for name in "123"]
    assert found[0].columns == ["row", "score", "probability"]
    assert found[0]["score"].to_list() + found[1]["score"].to_list() == found[2]["score"].to_list()
    assert sha256(tmp_path / "a" / "model.safetensors") == sha256(tmp_path / "b" / "model.safetensors")


def test_measured_on_later_events(model: Path, tmp_path: Path) -> None:
    later = streams.write(tmp_path / "later.csv", streams.jodie(200, 260), streams.JODIE)
    ran = polytask("evaluate", model, later)
    assert ran.code == 0, ran.err
    assert re.search(r"links +60 +ap +0\.\d{4}\s+auc +0\.\d{4}", ran.out)
    assert json.loads(polytask("evaluate", model, later, "--json").out)["links"]["ap"] > 0.5


def test_rows_that_cannot_be_asked_are_told(model: Path, tmp_path: Path) -> None:
    lines = ["0,0,5000", "9,0,5000", "0,9,5000", "0,0,5", "0,0,soon"]
    new = streams.write(tmp_path / "new.csv", lines, "source,target,timestamp")
    ran = polytask("predict", model, new, "-o", tmp_path / "out.csv")
    assert ran.code == 3 and "1 rows predicted, 4 could not be read" in ran.err
    for line in (
        "row 2: column 'source': unknown node '9', expected the id of a node that the model was trained on",
        "row 3: column 'target': unknown node '9'",
        "row 4: column 'timestamp': 5.0 before 1990.0, the last event that the memory has seen",
        "row 5: column 'timestamp': 'soon', expected a number",
    ):
        assert line in ran.err
    assert pl.read_csv(tmp_path / "out.csv")["row"].to_list() == [1]


def test_refused(model: Path, tmp_path: Path) -> None:
    visits, out = model.with_name("visits.csv"), ("-o", tmp_path / "out")
    for words, line in {
        ("-t", "x"): "--target is for tables, images and graphs",
        ("--graph", "x"): "--graph is other data, expected one of both",
        ("--split", "time"): "--split is for tables, images and graphs",
        ("--steps", "5"): "--steps would cut a pass, in which the memory goes on: choose --epochs",
        ("--devices", "2"): "--devices is for several processes",
        ("--model", "tng"): "unknown model of events 'tng': did you mean 'tgn'?",
        ("-m", "mmoe"): "method 'mmoe+equal': a model of events shares all it has, expected a balancer alone",
        ("--epochs", "0.5"): "epochs is 0.5, expected a whole number",
    }.items():
        for command in ("fit", "validate"):
            assert line in refused(command, "--events", visits, *words, *out)
    assert "DATA is other data" in refused("fit", visits, "--events", visits, *out)
    assert "--model nat is for --events" in refused("fit", "multidigits", "--model", "nat", *out)
    assert "row 1: time 0.0 before 1990.0" in refused("evaluate", model, visits)
    assert "is a model of events" in refused("export", model, "-o", tmp_path / "model.onnx")
    assert "is a model of events" in refused("diff", model, model, visits)
    assert "is a model of events" in refused("shrink", model, visits)
    assert str(model) in refused("serve", model)
    assert not list(tmp_path.iterdir())


def test_validate_tells_what_a_run_takes_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    ran = polytask("validate", "--events", model.with_name("visits.csv"), "--batch-size", 40, "-o", tmp_path / "model")
    assert ran.code == 0 and "everything that fit needs is there" in ran.out
    assert re.search(r"model: tgn, [\d,]+ parameters for links", ran.err) and "steps: 40 at" in ran.err
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
def test_a_killed_fit_goes_on_with_its_memory_and_ends_with_the_same_bits(model: Path, tmp_path: Path) -> None:
    words = ["fit", "--events", str(model.with_name("visits.csv")), "--epochs", "20", "--batch-size", "10"]
    process = subprocess.Popen([*COMMAND, *words, "-o", str(tmp_path / "killed")], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed.run" / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = polytask(*words, "-o", tmp_path / "killed")
    assert again.code == 0 and "going on from" in again.err
    assert polytask(*words, "-o", tmp_path / "whole", "-q").code == 0
    assert sha256(tmp_path / "killed" / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")
    assert not (tmp_path / "killed.run").exists()
