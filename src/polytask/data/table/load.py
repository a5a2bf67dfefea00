"""A table and its targets as a data set ready for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.examples import PARTS, DataSet, Examples
from polytask.data.table.leaks import find_leaks
from polytask.data.table.read import read_table
from polytask.data.table.schema import Schema
from polytask.data.table.sentences import Sentences
from polytask.data.table.split import SHARES, split_rows
from polytask.data.table.targets import check_classes, describe, labels, target_task
from polytask.errors import InputError, suggest
from polytask.files import sha256
from polytask.nn.sentence import text_encoder_folder
from polytask.nn.tabular import TabularEncoder
from polytask.task import Binary, Classification, Ordinal, Task


def load_table(
    table: Path | str | pl.DataFrame,
    targets: Sequence[str],
    *,
    drop: Sequence[str] = (),
    kinds: Mapping[str, str] | None = None,
    where: str | None = None,
    split: str = "random",
    split_column: str | None = None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    row_limit: int | None = None,
    separator: str | None = None,
    text_encoder: Path | str | None = None,
) -> DataSet:
    """A table as a data set: tasks from target columns, splits, preprocessing fitted on the training rows, an encoder.

    Rows in which every target is missing are left out. Targets are never features of each other. The group or time column
    of a split is no feature.

    Args:
        table: a file (CSV or TSV, gzip too, Parquet, Arrow: see `polytask.data.table.read_table`) or a frame.
        targets: columns to predict, each ``NAME`` with its kind inferred or ``NAME:kind`` (binary, classification, ordinal,
            regression): see `polytask.data.table.target_task`.
        drop: columns to leave out.
        kinds: kinds of feature columns that are not to be inferred: numeric, boolean, categorical, date, text.
        where: a condition in SQL that rows must meet, such as ``age >= 18 AND country = 'NL'``.
        split: ``random``, ``stratified`` (each class of ``split_column`` divided alike; by default the first target with
            classes), ``group`` (no group of ``split_column`` in two parts), ``time`` (the latest rows are the test part).
        split_column: the classes, groups or times of the split.
        shares: of training, validation and test rows.
        seed: of the split.
        row_limit: read the first rows only.
        separator: between a text file's fields.
        text_encoder: a pretrained transformer that reads columns of text: ``"minilm"``, or the folder of another as
            `transformers` writes it, with its ``tokenizer.json``. By default texts are bags of words.

    Returns:
        A data set whose ``schema`` is the fitted `Schema`, and whose ``provenance`` has the file's SHA-256, the split, the
        lines ``report`` (each target and what kind it is taken for) and ``warnings`` (leaks, ids and constants left out).

    Raises:
        InputError: in one line, naming file, row, column, value and what was expected.
    """
    name = "table" if isinstance(table, pl.DataFrame) else str(table)
    if not targets:
        raise InputError(f"{name}: no target was given, expected at least one column to predict")
    frame = _frame(table, kinds or {}, separator, row_limit)
    for column in [*drop, *([split_column] if split_column else [])]:
        if column not in frame.columns:
            raise InputError(f"{name}: unknown column {column!r}: {suggest(column, frame.columns)}")
    tasks = [target_task(target, frame, name) for target in targets]
    values = {task.name: labels(frame[task.name], task, name) for task in tasks}
    kept = np.flatnonzero(_kept(frame, where, tasks, values, name))
    if len(kept) < len(frame):
        frame = frame[kept]
        values = {column: label[torch.from_numpy(kept)] for column, label in values.items()}
    divider = _split_column(frame, split, split_column, tasks, name)
    index = dict(zip(PARTS, split_rows(len(frame), split, divider, shares, seed), strict=True))
    part_targets = {
        part: {column: label[torch.from_numpy(rows)] for column, label in values.items()} for part, rows in index.items()
    }
    warnings = check_classes(tasks, part_targets, name)
    features = frame.drop({*drop, *values, *([split_column] if split in ("group", "time") and split_column else [])})
    del frame, divider
    folder = text_encoder_folder(text_encoder) if text_encoder is not None else None
    schema, inputs = _preprocessed(features, index, kinds, name, kept + 1, Sentences.read(folder) if folder else None)
    if folder and not schema.texts:
        raise InputError(f"{name}: no column of text for the text encoder {str(text_encoder)!r}: name one by its kind, text")
    del features
    warnings += [*schema.warnings, *find_leaks(schema, inputs["train"], part_targets["train"], tasks)]
    examples = {part: Examples(inputs[part], part_targets[part]) for part in PARTS}
    return DataSet(
        name=Path(name).name.split(".")[0],
        tasks=tasks,
        train=examples["train"],
        validation=examples["validation"],
        test=examples["test"],
        encoder=partial(TabularEncoder, **schema.encoder_settings(), pretrained=folder),
        settings=training_settings(len(index["train"]), pretrained=folder is not None),
        provenance={
            "source": name,
            "sha256": None if isinstance(table, pl.DataFrame) else sha256(table),
            "where": where,
            "text_encoder": str(text_encoder) if text_encoder is not None else None,
            "split": {"how": split, "column": split_column, "shares": list(shares), "seed": seed},
            "rows": {part: len(rows) for part, rows in index.items()},
            "report": [describe(task, part_targets["train"][task.name]) for task in tasks],
            "warnings": warnings,
        },
        schema=schema,
    )


def training_settings(rows: int, pretrained: bool = False) -> dict[str, Any]:
    """The defaults of training on ``rows`` rows of a table: keyword arguments of `polytask.fit`.

    Learning rate and weight decay are TabM's; small tables need more passes to take as many steps. Where texts are read by a
    pretrained transformer, a few passes at the rates of fine-tuning.
    """
    if pretrained:
        size = min(rows, 32)
        twice_an_epoch = max(1, rows // size // 2)  # an evaluation costs as much as many steps
        rates = {"lr": 3e-4, "weight_decay": 1e-2, "clip": 1.0}
        return {"batch_size": size, "epochs": 3, "evaluate_every": twice_an_epoch, "patience": 4, **rates}
    return {
        "batch_size": min(rows, 256 if rows < 100_000 else 1024),
        "lr": 2e-3,
        "weight_decay": 3e-4,
        "clip": 1.0,
        "epochs": min(60, max(8, round(130_000 / rows))),
        "patience": 8,
    }


def _frame(
    table: Path | str | pl.DataFrame, kinds: Mapping[str, str], separator: str | None, row_limit: int | None
) -> pl.DataFrame:
    """The table, read if it is a file, its first ``row_limit`` rows."""
    if not isinstance(table, pl.DataFrame):
        text = [column for column, kind in kinds.items() if kind in ("categorical", "text", "boolean")]
        return read_table(table, text=text, separator=separator, row_limit=row_limit)
    frame = table if row_limit is None else table.head(row_limit)
    if frame.is_empty():
        raise InputError("table: has no rows, expected some")
    return frame


def _preprocessed(
    features: pl.DataFrame,
    index: Mapping[str, NDArray[np.int64]],
    kinds: Mapping[str, str] | None,
    name: str,
    numbered: NDArray[np.int64],
    sentences: Sentences | None,
) -> tuple[Schema, dict[str, dict[str, Tensor]]]:
    """The schema fitted to the training rows, and each part's inputs; ``numbered``: the rows' numbers in the file."""
    train, rows = features[index["train"]], numbered[index["train"]]
    schema = Schema.fit(train, kinds, name, rows, sentences)
    inputs = {"train": schema.transform(train, name, rows)}
    del train
    for part in PARTS[1:]:
        inputs[part] = schema.transform(features[index[part]], name, numbered[index[part]])
    return schema, inputs


def _kept(
    frame: pl.DataFrame, where: str | None, tasks: Sequence[Task], values: Mapping[str, Tensor], name: str
) -> NDArray[np.bool_]:
    """Which rows meet ``where`` and have a label."""
    kept = np.ones(len(frame), dtype=bool)
    if where is not None:
        try:
            kept &= frame.select(pl.sql_expr(where).cast(pl.Boolean).fill_null(False)).to_series().to_numpy()
        except pl.exceptions.PolarsError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{name}: where {where!r}: {reason}, expected a condition on {', '.join(frame.columns)}"
            ) from error
        if not kept.any():
            raise InputError(f"{name}: none of {len(frame)} rows meets {where!r}, expected some")
    kept &= torch.stack([task.present(values[task.name]) for task in tasks]).any(0).numpy()
    if not kept.any():
        raise InputError(f"{name}: none of {len(frame)} rows meets {where!r} and has a label, expected some")
    return kept


def _split_column(frame: pl.DataFrame, split: str, column: str | None, tasks: Sequence[Task], name: str) -> pl.Series | None:
    """The column that divides the rows, checked against the way of splitting."""
    if split == "random" and column is not None:
        raise InputError(f"{name}: a random split takes no split column, got {column!r} (stratified, group or time do)")
    if split in ("group", "time") and column is None:
        raise InputError(f"{name}: a {split} split needs a split column, expected one of {', '.join(frame.columns)}")
    if split == "stratified" and column is None:
        labelled = [task.name for task in tasks if isinstance(task, Binary | Classification | Ordinal)]
        if not labelled:
            raise InputError(f"{name}: a stratified split needs a target with classes, or a split column")
        column = labelled[0]
    return None if column is None else frame[column]
