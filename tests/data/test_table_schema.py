"""Columns to numbers: kinds, fitted transforms, and what must hold for every table."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from polytask.data.table import Schema, infer_kind
from polytask.data.table.columns import CATEGORIES, Number
from polytask.errors import InputError

numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.integers(-3, 3).map(float))
words = st.one_of(st.none(), st.sampled_from(["red", "green", "blue"]), st.text(max_size=12))
moments = st.one_of(st.none(), st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)))
flags = st.one_of(st.none(), st.booleans())


def frames(least: int = 1, most: int = 30) -> st.SearchStrategy[pl.DataFrame]:
    row = st.tuples(numbers, words, moments, flags, words)
    schema = {"n": pl.Float64, "c": pl.String, "d": pl.Datetime("us"), "b": pl.Boolean, "t": pl.String}
    return st.lists(row, min_size=least, max_size=most).map(lambda rows: pl.DataFrame(rows, schema=schema, orient="row"))


KINDS = {"n": "numeric", "c": "categorical", "d": "date", "t": "text"}


def fitted(train: pl.DataFrame) -> Schema:
    try:
        return Schema.fit(train, KINDS)
    except InputError:  # every column is constant or missing
        reject()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames(), frames())
def test_transform_of_any_rows_is_finite_and_within_the_encoders_codes(train: pl.DataFrame, new: pl.DataFrame) -> None:
    schema = fitted(train)
    inputs = schema.transform(new)
    sizes = schema.encoder_settings()
    for tensor in inputs.values():
        assert len(tensor) == len(new) and bool(torch.isfinite(tensor.float()).all())
    if "numeric" in inputs:
        assert inputs["numeric"].shape[1] == sizes["numeric"] and float(inputs["numeric"].abs().max()) <= 1
    if "categorical" in inputs:
        assert bool((inputs["categorical"] >= 0).all())
        assert bool((inputs["categorical"] < torch.tensor(sizes["categories"])).all())
    if "text" in inputs:
        assert int(inputs["text"].min()) >= 0 and int(inputs["text"].max()) < sizes["words"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames(), frames())
def test_a_schema_read_back_from_json_transforms_alike(train: pl.DataFrame, new: pl.DataFrame) -> None:
    schema = fitted(train)
    again = Schema.from_json(json.loads(json.dumps(schema.to_json(), allow_nan=False)), schema.tensors())
    before, after = schema.transform(new), again.transform(new)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert again.to_json() == schema.to_json()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=50))
def test_ranks_keep_the_order(values: list[float]) -> None:
    array = np.array(values)
    ranks, absent = Number.fit("n", "value", array, missing=False).encode(np.sort(array))
    assert not absent.any() and (np.diff(ranks) >= 0).all()
    distinct = np.unique(array)
    if len(distinct) > 1:
        assert ranks[0] < ranks[-1]


def test_half_of_the_range_is_for_distinct_values() -> None:
    values = np.array([0.0] * 97 + [1.0, 2.0, 3.0])
    ranks, _ = Number.fit("n", "value", values, missing=False).encode(np.array([0.0, 1.0, 2.0, 3.0]))
    # Mass: (0.97 + 0.25) / 2 for zero, (0.01 + 0.25) / 2 for each other; a rank is the middle of its step, in [-1, 1].
    assert ranks == pytest.approx([-0.39, 0.35, 0.61, 0.87])


def test_outliers_and_missing_values() -> None:
    train = pl.DataFrame({"n": [1.0, 2.0, None, 4.0, float("inf"), float("nan")]})
    schema = Schema.fit(train)
    assert schema.warnings == ("column 'n': 1 infinite values are read as missing",)
    inputs = schema.transform(pl.DataFrame({"n": [-1e300, 1.0, 4.0, 1e300, None, float("-inf")]}))
    first, one, four, last, missing, infinite = inputs["numeric"].flatten().tolist()
    assert first == one and last == four and missing == infinite == 0
    assert inputs["missing"].flatten().tolist() == [0, 0, 0, 0, 1, 1]


def test_categories_missing_unknown_and_rare() -> None:
    train = pl.DataFrame({"c": ["red"] * 5 + ["blue"] * 3 + ["rare"] * 2 + [None]})
    codes = Schema.fit(train).transform(pl.DataFrame({"c": [None, "rare", "never seen", "blue", "red"]}))["categorical"]
    assert codes.flatten().tolist() == [0, 1, 1, 2, 3]


def test_a_million_categories_are_hashed() -> None:
    names = pl.Series("c", range(1_000_000)).cast(pl.String) + "x"
    train = pl.DataFrame({"c": pl.concat([names] * 3, rechunk=False)})
    schema = Schema.fit(train)
    (warning,) = schema.warnings
    assert warning == f"column 'c': 1000000 categories are hashed into {CATEGORIES}"
    assert schema.encoder_settings()["categories"] == [CATEGORIES + 2]
    codes = schema.transform(pl.DataFrame({"c": ["17x", "17x", None, "unseen"]}))["categorical"].flatten()
    assert codes[0] == codes[1] == 2 + 3983 and codes[2] == 0 and 2 <= codes[3] < CATEGORIES + 2
    assert len(json.dumps(schema.to_json())) < 1000


def test_a_million_rare_categories_are_one() -> None:
    train = pl.DataFrame({"c": pl.Series(range(1_000_000)).cast(pl.String) + "x", "n": range(1_000_000)}).with_columns(
        pl.when(pl.col("n") % 2 == 0).then(pl.lit("even")).otherwise(pl.col("c")).alias("c"), pl.col("n") % 7
    )
    assert Schema.fit(train).encoder_settings()["categories"] == [3]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "numeric"),
        ([1.5, None], "numeric"),
        ([True, None], "boolean"),
        ([date(2024, 1, 1)], "date"),
        ([timedelta(1)], "numeric"),
        (["a", "b"], "categorical"),
        (["1", " 2.5 ", None], "numeric"),
        (["2024-01-01", "2024-01-02T10:00:00Z"], "date"),
        (["01/02/2024", "02/02/2024"], "categorical"),  # day or month first: not guessed
        (["the first of some texts", "and a second one", "a third short text"], "text"),
        (["has three words", "has three words", "has three words"], "categorical"),
        ([[1], [2]], None),
    ],
)
def test_kinds(values: list[object], kind: str | None) -> None:
    assert infer_kind(pl.Series(values)) == kind


def test_dates_become_their_parts() -> None:
    days = pl.DataFrame({"d": pl.date_range(date(2023, 1, 1), date(2024, 12, 31), eager=True)})
    schema = Schema.fit(days)
    assert [number.part for number in schema.numbers] == ["time", "day_of_year", "weekday"]
    monday, tuesday, monday_later = schema.transform(
        pl.DataFrame({"d": ["2024-01-01", "2024-01-02", "2024-01-08 12:00:00"]})
    )["numeric"]
    assert monday[2] == monday_later[2] < tuesday[2] and monday[0] < tuesday[0] < monday_later[0]


def test_texts_become_codes_of_words() -> None:
    train = pl.DataFrame({"t": [f"word{i} is one of many words" for i in range(20)]})
    schema = Schema.fit(train)
    assert schema.kinds == {"t": "text"}
    texts = schema.transform(pl.DataFrame({"t": ["Words, many!", "many words", None, ""]}))["text"][:, 0]
    assert sorted(texts[0].tolist()) == sorted(texts[1].tolist()) and len(set(texts[0].tolist())) == 3
    assert texts[2].sum() == texts[3].sum() == 0


def test_columns_that_cannot_help_are_left_out() -> None:
    rows = 500
    frame = pl.DataFrame(
        {
            "customer": [f"C-{i:05d}" for i in range(rows)],
            "row": range(rows),
            "one": [1] * rows,
            "void": [None] * rows,
            "list": [[1]] * rows,
            "useful": [i % 7 for i in range(rows)],
            "spread": [i * i * 1000 for i in range(rows)],
        }
    )
    schema = Schema.fit(frame)
    assert list(schema.kinds) == ["useful", "spread"]
    assert schema.warnings == (
        "column 'customer' is left out: it looks like an id, every value differs",
        "column 'row' is left out: it looks like an id, every value differs",
        "column 'one' is left out: it has one value in the training part",
        "column 'void' is left out: every value is missing",
        "column 'list' is left out: its type is List(Int64)",
    )
    assert "row" in Schema.fit(frame, {"row": "numeric"}).kinds


def test_kinds_given() -> None:
    frame = pl.DataFrame({"code": [1, 1, 1, 2, 2, 2]})
    assert Schema.fit(frame, {"code": "categorical"}).encoder_settings()["categories"] == [4]
    floats = pl.DataFrame({"code": [1.0, None]})
    assert Schema.fit(frame, {"code": "categorical"}).transform(floats)["categorical"].flatten().tolist() == [2, 0]
    with pytest.raises(InputError, match="unknown column 'cod': did you mean 'code'"):
        Schema.fit(frame, {"cod": "categorical"})
    with pytest.raises(InputError, match="unknown kind 'categoric': did you mean 'categorical'"):
        Schema.fit(frame, {"code": "categoric"})


def test_errors_of_transform() -> None:
    schema = Schema.fit(pl.DataFrame({"age": range(9)}))
    with pytest.raises(InputError, match=r"new\.csv: row 2, column 'age': 'old', expected a number"):
        schema.transform(pl.DataFrame({"age": ["1", "old"]}), "new.csv")
    with pytest.raises(InputError, match="'age' is missing: did you mean 'ages'"):
        schema.transform(pl.DataFrame({"ages": [1]}))
    with pytest.raises(InputError, match="no usable feature column"):
        Schema.fit(pl.DataFrame({"one": [1, 1]}))


def test_a_column_that_is_rarely_known() -> None:
    values = [None] * 299 + [3.0, float("inf")]
    frame = pl.DataFrame({"rare": values, "never": [float("nan")] * 300 + [float("inf")], "n": [i % 5 for i in range(301)]})
    schema = Schema.fit(frame)
    assert list(schema.kinds) == ["rare", "n"] and schema.missing_numbers == [0]
    assert int(schema.transform(frame)["missing"].sum()) == 300


def test_numbers_are_fitted_to_a_sample_of_many_rows() -> None:
    values = np.random.default_rng(0).normal(size=500_000)
    (number,) = Schema.fit(pl.DataFrame({"n": values})).numbers
    assert len(number.knots) <= 256
    ranks, _ = number.encode(np.quantile(values, [0.1, 0.5, 0.9]))
    assert ranks == pytest.approx([-0.8, 0.0, 0.8], abs=0.01)
