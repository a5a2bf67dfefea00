"""A table as a data set: targets, splits, leaks, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from polytask.data.table import labels, load_table, split_rows, target_task
from polytask.errors import InputError
from polytask.model import Model
from polytask.task import MISSING, Task

ROWS = 600


def people(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 90, rows)
    city = rng.choice(["Delft", "Gouda", "Leiden"], rows)
    spend = age * 1.5 + rng.normal(0, 20, rows)
    return pl.DataFrame(
        {
            "id": [f"p{i:06d}" for i in range(rows)],
            "age": age,
            "city": city,
            "height": rng.normal(170, 10, rows),
            "visits": rng.integers(0, 5, rows),
            "churn": np.where(rng.random(rows) < 0.3, "yes", "no"),
            "level": rng.choice(["low", "mid", "high"], rows),
            "spend": spend,
        }
    )


def inputs_of(examples: object) -> Mapping[str, torch.Tensor]:
    inputs = examples.inputs  # type: ignore[attr-defined]
    assert isinstance(inputs, Mapping)
    return inputs


def test_load_table_is_ready_for_training(tmp_path: Path) -> None:
    people().write_csv(tmp_path / "people.csv")
    data = load_table(tmp_path / "people.csv", ["churn", "level", "spend"], seed=1)
    assert data.name == "people"
    assert [task.kind for task in data.tasks] == ["binary", "classification", "regression"]
    assert [len(part) for part in (data.train, data.validation, data.test)] == [360, 120, 120]
    assert set(data.schema.kinds) == {"age", "city", "height", "visits"}
    assert (
        data.provenance["report"][0].startswith("target churn: binary (") and "'yes' of 360" in data.provenance["report"][0]
    )
    assert data.provenance["warnings"] == ["column 'id' is left out: it looks like an id, every value differs"]
    assert len(data.provenance["sha256"]) == 64
    model = Model(data.encoder(), data.tasks)
    assert model.losses(data.train[:8]).keys() == {"churn", "level", "spend"}
    model.encoder.eval()
    assert model.predict(inputs_of(data.test))["churn"].shape == (120,)


def test_same_seed_same_split_and_another_seed_another() -> None:
    first, again, other = (load_table(people(), ["spend"], seed=seed).train.targets["spend"] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_preprocessing_sees_the_training_part_only() -> None:
    frame = people()
    changed = frame.with_columns(
        pl.when(pl.int_range(pl.len()) >= ROWS * 0.8).then(1e6).otherwise(pl.col("height")).alias("height")
    )
    settings = {"split": "time", "split_column": "time"}
    before, after = (
        load_table(f.with_columns(pl.int_range(ROWS).alias("time")), ["spend"], **settings) for f in (frame, changed)
    )
    assert before.schema.to_json() == after.schema.to_json()
    assert torch.equal(inputs_of(before.train)["numeric"], inputs_of(after.train)["numeric"])


# Targets


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        (["no", "yes", None], "binary", ("no", "yes")),
        ([True, False], "binary", ("false", "true")),
        ([2, 10, 2], "binary", ("2", "10")),
        ([0.0, 1.0, None], "binary", ("0", "1")),
        (["a", "b", "c"], "classification", ("a", "b", "c")),
        ([10, 9, 1], "classification", ("1", "9", "10")),
        (list(range(11)), "regression", None),
        ([0.5, 1.5, 2.5], "regression", None),
    ],
)
def test_kinds_of_targets(values: list[object], kind: str, classes: tuple[str, ...] | None) -> None:
    task = target_task("y", pl.DataFrame({"y": values}))
    assert task.kind == kind
    assert getattr(task, "classes", None) == classes


def test_a_stated_kind_and_a_column_with_a_colon() -> None:
    frame = pl.DataFrame({"y": [1, 2, 3], "a:ordinal": [1, 2, 1]})
    assert target_task("y:ordinal", frame).kind == "ordinal"
    assert target_task("y:regression", frame).kind == "regression"
    assert target_task("a:ordinal", frame) == Task.binary("a:ordinal", classes=["1", "2"])


def test_labels() -> None:
    binary = Task.binary("y", classes=["no", "yes"])
    values = labels(pl.Series("y", ["yes", None, "no"]), binary)
    assert values[0] == 1 and values[2] == 0 and torch.isnan(values[1])
    several = Task.classification("y", classes=["1", "2", "3"])
    assert labels(pl.Series("y", [3, None, 1]), several).tolist() == [2, MISSING, 0]
    assert labels(pl.Series("y", [3.0, None, 1.0]), several).tolist() == [2, MISSING, 0]
    number = labels(pl.Series("y", ["1.5", None]), Task.regression("y"))
    assert number[0] == 1.5 and torch.isnan(number[1])
    with pytest.raises(InputError, match=r"row 2, column 'y': 'yess' is none of its classes: did you mean 'yes'"):
        labels(pl.Series("y", ["no", "yess"]), binary)


@pytest.mark.parametrize(
    ("target", "values", "message"),
    [
        ("z", [1, 2], "unknown target column 'z'"),
        ("why", [1, 2], "unknown target column 'why'"),
        ("y:ordinel", [1, 2, 3], "unknown kind 'ordinel': did you mean 'ordinal'"),
        ("y", [None, None], "all 2 labels are missing"),
        ("y", ["a", "a", None], "every label is 'a', expected at least two classes"),
        ("y:regression", [2, 2], "every value is 2"),
        ("y:regression", ["1", "x"], "row 2, target 'y': 'x', expected a finite number"),
        ("y", [1.5, 2.5, float("inf"), 3.5], "row 3, target 'y': inf, expected a finite number"),
        ("y:binary", [1, 2, 3], "3 classes (1, 2, 3), expected 2 for binary"),
        ("y", [f"c{i}" for i in range(2000)], "2000 classes, expected at most 1000"),
        ("y", [[1], [2]], "its type is List(Int64)"),
    ],
)
def test_targets_that_are_refused(target: str, values: list[object], message: str) -> None:
    rows = len(values)
    with pytest.raises(InputError) as caught:
        load_table(pl.DataFrame({"y": values, "x": range(rows)}, strict=False), [target])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_rows_without_any_label_are_left_out_and_partial_ones_kept() -> None:
    frame = people().with_columns(
        pl.when(pl.int_range(pl.len()) < 300).then(None).otherwise(pl.col("churn")).alias("churn"),
        pl.when(pl.int_range(pl.len()) < 100).then(None).otherwise(pl.col("spend")).alias("spend"),
    )
    data = load_table(frame, ["churn", "spend"])
    assert sum(data.provenance["rows"].values()) == 500
    present = sum(int((~torch.isnan(part.targets["churn"])).sum()) for part in (data.train, data.validation, data.test))
    assert present == 300


def test_a_class_seen_only_outside_training() -> None:
    frame = people().with_columns(pl.int_range(ROWS).alias("time"))
    late = frame.with_columns(
        pl.when(pl.col("time") >= ROWS - 3).then(pl.lit("new")).otherwise(pl.col("level")).alias("level")
    )
    with pytest.raises(InputError, match="class 'new' is only in 3 rows of the test part, none for training"):
        load_table(late, ["level"], split="time", split_column="time")
    with pytest.raises(InputError, match=r"none for training"):
        load_table(frame.with_columns((pl.col("time") < ROWS - 3).alias("y")), ["y"], split="time", split_column="time")


# Conditions and unknown names


def test_where() -> None:
    data = load_table(people(), ["spend"], where="age >= 50 AND city = 'Delft'")
    kept = people().filter((pl.col("age") >= 50) & (pl.col("city") == "Delft"))
    assert sum(data.provenance["rows"].values()) == len(kept)
    with pytest.raises(InputError, match="none of 600 rows meets 'age > 200'"):
        load_table(people(), ["spend"], where="age > 200")
    for condition in ("agee > 1", "age >", "SELECT"):
        with pytest.raises(InputError, match="expected a condition on id, age"):
            load_table(people(), ["spend"], where=condition)


def test_a_condition_that_leaves_one_class() -> None:
    with pytest.raises(InputError, match="'churn': every training label is 'no', expected two classes"):
        load_table(people(), ["churn"], where="churn = 'no'")


def test_unknown_columns_are_suggested() -> None:
    for settings_ in ({"drop": ["hieght"]}, {"split": "group", "split_column": "hieght"}, {"kinds": {"hieght": "numeric"}}):
        with pytest.raises(InputError, match="unknown column 'hieght': did you mean 'height'"):
            load_table(people(), ["spend"], **settings_)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown target column 'spent': did you mean 'spend'"):
        load_table(people(), ["spent"])
    with pytest.raises(InputError, match="no target was given"):
        load_table(people(), [])
    with pytest.raises(InputError, match="two tasks are named 'spend'"):
        load_table(people(), ["spend", "spend:regression"])
    with pytest.raises(InputError, match="has no rows"):
        load_table(people().clear(), ["spend"])


# Leaks


def test_near_copies_of_targets_are_named_with_the_figure() -> None:
    rng = np.random.default_rng(0)
    frame = people(2000).with_columns(
        (pl.col("churn") == "yes").cast(pl.Int64).alias("left_us"),
        pl.col("level").replace({"low": "L", "mid": "M", "high": "H"}).alias("tier"),
        (pl.col("spend") * 3 + rng.normal(0, 0.1, 2000)).exp().alias("exp_spend"),
    )
    warnings = [w for w in load_table(frame, ["churn", "level", "spend"]).provenance["warnings"] if "predicts" in w]
    assert len(warnings) == 3
    assert any("'left_us' predicts target 'churn' almost perfectly on its own (AUROC 1.0000)" in w for w in warnings)
    assert any("'tier' predicts target 'level'" in w for w in warnings)
    assert any("'exp_spend' predicts target 'spend'" in w and "R2 of ranks 0.99" in w for w in warnings)


def test_missing_only_where_the_target_is_positive_is_a_leak() -> None:
    frame = people(2000).with_columns(
        pl.when(pl.col("churn") == "yes").then(None).otherwise(pl.col("height")).alias("height")
    )
    assert any("'height' predicts target 'churn'" in w for w in load_table(frame, ["churn"]).provenance["warnings"])


def test_honest_features_are_no_leaks() -> None:
    assert not [w for w in load_table(people(2000), ["churn", "level", "spend"]).provenance["warnings"] if "predicts" in w]


# Splits


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["random", "stratified", "group", "time"]),
    st.lists(st.one_of(st.none(), st.integers(0, 12)), min_size=40, max_size=200),
    st.integers(0, 5),
)
def test_splits_are_disjoint_and_whole(how: str, keys: list[int | None], seed: int) -> None:
    column = pl.Series("key", keys, dtype=pl.Int64)
    try:
        parts = split_rows(len(keys), how, None if how == "random" else column, seed=seed)
    except InputError:  # too few groups or times for three parts
        reject()
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(keys)))
    groups = [{keys[i] for i in part} for part in parts]
    if how in ("group", "time"):
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    if how == "time":
        times = [[-1 if key is None else key for key in group] for group in groups]
        assert max(times[0]) < min(times[1]) <= max(times[1]) < min(times[2])
    if how == "stratified":
        for key in set(keys):
            share = sum(keys[i] == key for i in parts[0]) / keys.count(key)
            assert abs(share * keys.count(key) - 0.6 * keys.count(key)) <= 1


def test_splits_of_a_table() -> None:
    frame = people().with_columns((pl.int_range(pl.len()) // 3).alias("household"))
    data = load_table(frame, ["churn"], split="group", split_column="household")
    assert "household" not in data.schema.kinds
    stratified = load_table(frame, ["churn"], split="stratified")
    shares = [float(part.targets["churn"].mean()) for part in (stratified.train, stratified.validation, stratified.test)]
    assert max(shares) - min(shares) < 0.01
    for wrong, message in (
        ({"split": "groups", "split_column": "age"}, "unknown split 'groups': did you mean 'group'"),
        ({"split": "group"}, "a group split needs a split column"),
        ({"split_column": "age"}, "a random split takes no split column"),
        ({"shares": (0.5, 0.5, 0.5)}, "expected three positive numbers that sum to 1"),
    ):
        with pytest.raises(InputError, match=message):
            load_table(frame, ["churn"], **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs a target with classes"):
        load_table(frame, ["spend"], split="stratified")
    with pytest.raises(InputError, match="leaves none for"):
        load_table(frame.head(2), ["spend"])


def test_errors_number_the_rows_of_the_file() -> None:
    text = [str(i % 9) for i in range(ROWS)]
    text[57] = "many"
    frame = people().with_columns(pl.Series("count", text), pl.int_range(ROWS).alias("time"))
    with pytest.raises(InputError, match=r"table: row 58, column 'count': 'many', expected a number"):
        load_table(frame, ["spend"], kinds={"count": "numeric"}, where="time >= 10")


def test_a_table_smaller_than_the_usual_batch_is_one_batch() -> None:
    from polytask.data.table.load import training_settings

    assert [training_settings(rows)["batch_size"] for rows in (40, 5_000, 200_000)] == [40, 256, 1024]
