"""A small table with mixed columns, and a model of it that is quick to train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

import polytask as pt
from polytask.nn.tabular import TabularEncoder
from polytask.share import MMoE
from polytask.store import Saved, load, save

TARGETS = ("churn", "spend", "segment")


def frame(rows: int, seed: int = 0) -> pl.DataFrame:
    """Numbers with holes, a category that looks like a number, a text, and three targets that depend on them."""
    rng = np.random.default_rng(seed)
    age, zone = rng.integers(18, 80, rows), rng.choice(["007", "010", "020"], rows)
    income = np.exp(rng.normal(3, 1, rows))
    word = rng.choice(["good", "bad", "fair"], rows)
    score = (age - 50) / 20 + np.log(income) / 2 + (zone == "007") + (word == "good") + rng.normal(0, 0.3, rows)
    return pl.DataFrame(
        {
            "age": age,
            "income": [None if hole else float(value) for value, hole in zip(income, rng.random(rows) < 0.1, strict=True)],
            "zone": zone,
            "note": [f"the {w} service number {i}" for i, w in enumerate(word)],
            "churn": np.where(score + rng.normal(0, 0.5, rows) > 2, "yes", "no"),
            "spend": 10 * score + rng.normal(0, 2, rows),
            "segment": np.array(["low", "mid", "top"])[np.digitize(score, [1.5, 2.5])],
        }
    )


def write(path: Path, rows: int, seed: int = 0) -> Path:
    """The table as CSV."""
    frame(rows, seed).write_csv(path)
    return path


def dataset(path: Path) -> pt.DataSet:
    """The table in the file ``path`` as a data set with a small encoder."""
    data = pt.load_table(path, TARGETS, kinds={"zone": "categorical"})
    settings = {**data.schema.encoder_settings(), "width": 16, "members": 2, "bins": 8}
    object.__setattr__(data, "encoder", lambda: TabularEncoder(**settings))
    return data


def model(data: pt.DataSet, seed: int = 0) -> pt.Model:
    """A model with untrained weights."""
    torch.manual_seed(seed)
    return pt.Model(data.encoder(), data.tasks, MMoE(experts=2)).eval()


def saved(folder: Path) -> Saved:
    """A model of 200 rows, saved in ``folder`` and read back."""
    data = dataset(write(folder / "table.csv", 200))
    save(model(data), folder / "model", dataset=data)
    return load(folder / "model")
