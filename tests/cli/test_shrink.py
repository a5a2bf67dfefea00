"""``polytask shrink`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from tests import small_table
from tests.cli.command import polytask, refused

from polytask.store import load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_table.write(folder / "table.csv", 300)
    targets = [word for target in small_table.TARGETS for word in ("-t", target)]
    ran = polytask("fit", folder / "table.csv", *targets, "-o", folder / "model", "--steps", 20, "-q")
    assert ran.code == 0, ran.err
    return folder / "model"


@pytest.mark.soak
def test_a_smaller_model_is_one_like_any_other(model: Path, tmp_path: Path) -> None:
    table, small = model.parent / "table.csv", tmp_path / "small"
    floors = ["-f", f"{small_table.TARGETS[0]}=-90%"]
    options = ["-b", "macs=0.5x", "--shares", "0.75", "--steps", 5]
    ran = polytask("shrink", model, table, *options, *floors, "-o", small, "--plot", tmp_path / "p.png", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert [row["share"] <= limit for row, limit in zip(found["rows"], (0.75, 0.5), strict=True)] == [True, True]
    assert (tmp_path / "p.png").stat().st_size > 5000
    before, after = load(model), load(small)
    assert sum(p.numel() for p in after.model.parameters()) < sum(p.numel() for p in before.model.parameters())
    assert after.schema is not None and after.about["data"] == before.about["data"]
    assert after.about["recipe"]["shrunk"]["budget"] == "macs=0.5x" and after.about["shrunk"][""]["shapes"]
    assert polytask("predict", small, table, "-o", tmp_path / "out.parquet").code == 0
    assert len(pl.read_parquet(tmp_path / "out.parquet")) == 300
    assert polytask("evaluate", small, table).code == polytask("explain", small).code == 0
    again = polytask("shrink", small, table, "-b", "macs=0.9x", "--shares", "", "--steps", 0, "-o", tmp_path / "smaller")
    assert again.code == 0, again.err
    assert "share" in again.out and len(load(tmp_path / "smaller").about["shrunk"][""]["removed"]) > 1


@pytest.mark.soak
def test_what_cannot_be_is_one_line(model: Path, tmp_path: Path) -> None:
    table, quick = model.parent / "table.csv", ["--steps", 0, "--shares", ""]
    task = small_table.TARGETS[0].partition(":")[0]
    assert "unknown quantity 'mac': did you mean 'macs'" in refused("shrink", model, table, "-b", "mac=0.5x")
    assert "the smallest reachable is" in refused("shrink", model, table, "-b", "macs=0.0001x", *quick)
    assert "floor for an unknown task" in refused("shrink", model, table, "-f", "nobody=0.5")
    assert "expected TASK=N" in refused("shrink", model, table, "-f", "0.5")
    assert "--shares" in refused("shrink", model, table, "--shares", "half")
    out = tmp_path / "out"
    ran = polytask("shrink", model, table, "-f", f"{task}=100%", "-o", out, *quick)
    assert ran.code == 2 and "cannot be met with these floors" in ran.err and "below its floor" in ran.out
    assert not out.exists()
