"""Predictions in a stream: what the model itself predicts, in constant memory, without the rows that cannot be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tests import small_table
from tests.test_store import largest_file, read_only
from torch import nn

import polytask as pt
from polytask.errors import InputError
from polytask.predicting import SINKS, predict_table, read_examples
from polytask.store import Saved, load, save

READERS = {
    ".parquet": pl.read_parquet,
    ".csv": pl.read_csv,
    ".tsv": lambda path: pl.read_csv(path, separator="\t"),
    ".arrow": pl.read_ipc,
    ".feather": pl.read_ipc,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return small_table.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return small_table.write(tmp_path / "new.csv", 30, seed=4)


@pytest.mark.parametrize("suffix", list(SINKS))
def test_the_output_is_what_the_model_predicts(saved: Saved, new: Path, suffix: str) -> None:
    assert saved.schema is not None
    out = new.with_name(f"out{suffix}")
    done = predict_table(saved, new, out, batch_rows=7)
    assert (done.rows, done.bad) == (30, 0)
    found = READERS[suffix](out)
    expected = saved.model.predict(saved.schema.transform(small_table.frame(30, seed=4)))
    assert found.columns == [
        *("row", "churn", "churn_probability", "spend"),
        *("segment", "segment_low", "segment_mid", "segment_top"),
    ]
    assert found["row"].to_list() == list(range(1, 31))
    assert np.allclose(found["churn_probability"], expected["churn"], atol=1e-6)
    assert np.allclose(found["spend"], expected["spend"][:, 0], rtol=1e-5)
    assert found["churn"].to_list() == ["yes" if p > 0.5 else "no" for p in expected["churn"].tolist()]
    assert found["segment"].to_list() == [("low", "mid", "top")[i] for i in expected["segment"].argmax(1).tolist()]
    assert not list(new.parent.glob(".*"))


def test_the_input_may_be_parquet_and_have_other_columns(saved: Saved, new: Path, tmp_path: Path) -> None:
    predict_table(saved, new, tmp_path / "a.parquet")
    small_table.frame(30, seed=4).drop("churn", "spend", "segment").with_columns(
        extra=pl.lit([1, 2])
    ).reverse().write_parquet(tmp_path / "new.parquet")
    predict_table(saved, tmp_path / "new.parquet", tmp_path / "b.parquet")
    a, b = pl.read_parquet(tmp_path / "a.parquet").reverse(), pl.read_parquet(tmp_path / "b.parquet")
    assert np.allclose(a["spend"], b["spend"], rtol=1e-5)


def test_rows_that_cannot_be_read_are_told_and_left_out(saved: Saved, new: Path) -> None:
    lines = new.read_text().splitlines()
    lines[3] = "forty," + lines[3].split(",", 1)[1]  # the header is line 0, so this is row 3
    lines[17] = "1,2,3"
    new.write_text("\n".join(lines) + "\n")
    told: dict[int, str] = {}
    done = predict_table(saved, new, new.with_name("out.csv"), batch_rows=4, on_bad=told.__setitem__)
    assert (done.rows, done.bad) == (28, 2)
    assert told[3] == "column 'age': 'forty', expected a number"
    assert told[17] == "3 fields, expected 7"
    assert pl.read_csv(new.with_name("out.csv"))["row"].to_list() == [row for row in range(1, 31) if row not in (3, 17)]


@pytest.mark.soak
def test_the_memory_does_not_grow_with_the_table(saved: Saved, tmp_path: Path) -> None:
    block = small_table.frame(20_000, seed=1)
    pl.concat([block] * 10).write_csv(tmp_path / "small.csv")
    pl.concat([block] * 30).write_csv(tmp_path / "large.csv")
    code = """
import resource, sys, polytask as pt
from polytask.data.table import read
from polytask.predicting import predict_table
read.BLOCK = 1 << 20  # of the small table too there are several
print(predict_table(pt.load(sys.argv[1]), sys.argv[2], sys.argv[3]).rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = {}
    for name, rows in {"small": 200_000, "large": 600_000}.items():
        words = [str(saved.path), str(tmp_path / f"{name}.csv"), str(tmp_path / f"{name}.parquet")]
        found = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        ).stdout.split()
        assert int(found[0]) == rows
        peaks[name] = int(found[1]) / 1024
    # The large table has 22 MB more of text and 20 MB more of predictions, and a process holds either a few times.
    assert peaks["large"] < peaks["small"] + 25


def test_labelled_rows_are_read_as_at_training(saved: Saved, tmp_path: Path) -> None:
    assert saved.schema is not None
    raw = small_table.frame(40, seed=6).filter(pl.col("zone") == "007").drop("spend")  # looks like the number 7
    raw.write_csv(tmp_path / "some.csv")
    examples = read_examples(saved, tmp_path / "some.csv")
    assert list(examples.targets) == ["churn", "segment"]
    assert examples.targets["churn"].tolist() == [float(label == "yes") for label in raw["churn"]]
    inputs = examples.inputs
    assert not isinstance(inputs, torch.Tensor)
    assert torch.equal(inputs["categorical"], saved.schema.transform(raw)["categorical"])


# What cannot be


def test_tables_without_what_the_model_needs_are_refused(saved: Saved, new: Path) -> None:
    out = new.with_name("out.parquet")
    frame = small_table.frame(5)
    frame.drop("income").write_csv(new)
    with pytest.raises(InputError, match=r"new.csv: the column 'income' is missing"):
        predict_table(saved, new, out)
    frame.drop(small_table.TARGETS).write_csv(new)
    with pytest.raises(InputError, match=r"has no target column, expected at least one of churn, spend, segment"):
        read_examples(saved, new)
    frame.with_columns(churn=pl.lit("maybe")).write_csv(new)
    with pytest.raises(InputError, match=r"row 1, column 'churn': 'maybe' is none of its classes"):
        read_examples(saved, new)
    frame.with_columns(age=pl.lit("old")).write_csv(new)
    with pytest.raises(InputError, match="none of its 5 rows can be read"):
        predict_table(saved, new, out)
    with pytest.raises(InputError, match="no such file"):
        predict_table(saved, new.with_name("nowhere.csv"), out)
    assert not out.exists()


def test_outputs_that_cannot_be_are_refused_and_nothing_is_lost(saved: Saved, new: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out.xlsx: unknown type of file, expected one that ends in .parquet"):
        predict_table(saved, new, tmp_path / "out.xlsx")
    before = new.read_bytes()
    with pytest.raises(InputError, match="is the input itself"):
        predict_table(saved, new, tmp_path / "." / "new.csv")
    assert new.read_bytes() == before
    (tmp_path / "shut").mkdir()
    with read_only(tmp_path / "shut"), pytest.raises(InputError, match="cannot be written"):
        predict_table(saved, new, tmp_path / "shut" / "out.csv")


@pytest.mark.parametrize("suffix", list(SINKS))
def test_on_a_full_disk_the_earlier_output_stays(saved: Saved, new: Path, suffix: str) -> None:
    out = new.with_name(f"out{suffix}")
    out.write_text("earlier")
    with largest_file(200), pytest.raises(InputError, match=rf"out{suffix}: cannot be written"):
        predict_table(saved, new, out)
    assert out.read_text() == "earlier"
    assert sorted(path.name for path in new.parent.iterdir()) == sorted([new.name, out.name])


def test_a_model_of_images_predicts_no_table(new: Path, tmp_path: Path) -> None:
    model = pt.Model(pt.nn.conv.ConvEncoder(channels=(1, 4), width=6, size=8), [pt.Task.binary("b")])
    save(model, tmp_path / "model")
    with pytest.raises(InputError, match="model: is no model of a table or a graph, it has no schema"):
        predict_table(load(tmp_path / "model"), new, tmp_path / "out.csv")


def test_an_error_of_the_model_itself_is_not_taken_for_a_full_disk(saved: Saved, new: Path) -> None:
    class Broken(nn.Module):
        def forward(self, inputs: object) -> torch.Tensor:
            raise RuntimeError("out of memory")

    broken = Saved(saved.path, pt.Model(Broken(), list(saved.model.tasks.values()), width=4), saved.schema, saved.about)
    with pytest.raises(RuntimeError, match="out of memory"):
        predict_table(broken, new, new.with_name("out.csv"))
