"""Gradient boosting on a table's own splits, and both models on a real table."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from polytask.comparison.yardstick import _features, gradient_boosting_yardstick
from polytask.data import DataSet, Examples
from polytask.data.table import load_table, read_rows, read_table
from polytask.errors import InputError
from polytask.model import Model
from polytask.training import evaluate


def table(rows: int = 900) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    x, name = rng.normal(size=rows), rng.choice(["a", "b", "c"], rows)
    y = x + (name == "a") * 2 + rng.normal(0, 0.3, rows)
    return pl.DataFrame(
        {
            "x": np.where(rng.random(rows) < 0.1, np.nan, x),
            "name": pl.Series(name).set(pl.Series(rng.random(rows) < 0.1), None),
            "note": [f"some words about {'good' if value > 0 else 'bad'} number {i}" for i, value in enumerate(y)],
            "y": y,
            "up": y > 0,
            "size": np.digitize(y, [-1, 0, 1]),
            "kind": np.array(["low", "mid", "high", "top"])[np.digitize(y, [-1, 0, 1])],
        }
    ).fill_nan(None)


def test_every_kind_of_target_is_scored_by_its_own_metrics() -> None:
    data = load_table(table(), ["y", "up", "size:ordinal", "kind"])
    scores = gradient_boosting_yardstick(data)
    ours = evaluate(Model(data.encoder(), data.tasks), data.test)
    assert {task: set(metrics) for task, metrics in scores.items()} == {task: set(metrics) for task, metrics in ours.items()}
    assert (
        scores["up"]["auroc"] > 0.9
        and scores["y"]["r2"] > 0.7
        and scores["size"]["kappa"] > 0.7
        and scores["kind"]["f1"] > 0.6
    )
    assert gradient_boosting_yardstick(data.only(["up"]))["up"] == scores["up"]


def test_trees_see_missing_values_as_missing() -> None:
    data = load_table(table(), ["up"], drop=["y", "size", "kind"])
    numbers, names, *words = _features(data, data.train).T
    inputs = data.train.inputs
    assert isinstance(inputs, dict)
    assert np.array_equal(np.isnan(numbers), inputs["missing"][:, 0].numpy() == 1)
    assert np.array_equal(np.isnan(names), inputs["categorical"][:, 0].numpy() == 0)
    assert np.array(words).sum() == float((inputs["text"] > 0).sum())


def test_only_for_tables() -> None:
    examples = Examples(torch.zeros(4, 2), {"up": torch.zeros(4)})
    data = DataSet("plain", load_table(table(), ["up"]).tasks, examples, examples, examples, lambda: torch.nn.Identity())
    with pytest.raises(InputError, match="plain: is no table"):
        gradient_boosting_yardstick(data)


def test_telco_churn_from_file_to_scores() -> None:
    folder = os.environ.get("POLYTASK_DATA")
    path = Path(folder or "") / "telco_churn" / "telco_churn.csv.gz"
    if not folder or not path.exists():
        pytest.skip("telco_churn is not in the folder that POLYTASK_DATA names")
    data = load_table(path, ["Churn", "Contract"])
    assert data.schema.kinds["TotalCharges"] == "numeric" and data.schema.missing_numbers
    assert [task.kind for task in data.tasks] == ["binary", "classification"]
    assert gradient_boosting_yardstick(data)["Churn"]["auroc"] > 0.8
    (chunk,) = read_rows(path, data.schema)
    assert not chunk.bad and len(chunk.frame) == 7043
    whole, streamed = data.schema.transform(read_table(path)), data.schema.transform(chunk.frame)
    assert all(torch.equal(whole[key], streamed[key]) for key in whole)
