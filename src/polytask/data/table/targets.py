"""Target columns: ``NAME`` or ``NAME:kind`` to a task, and the column's values to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask.data.examples import PARTS
from polytask.data.table.kinds import misfits, typed
from polytask.errors import InputError, suggest
from polytask.task import MISSING, Binary, Classification, Ordinal, Regression, Task

TARGET_KINDS = ("binary", "classification", "ordinal", "regression")
"""The kinds of tasks that a column can be the target of."""

FEW = 10
"""Whole numbers with up to this many distinct values are classes; with more, a regression."""

MANY = 1000
"""Classes that a target may have."""


def target_task(target: str, frame: pl.DataFrame, name: str = "table") -> Task:
    """The task for ``target``, a column or ``column:kind``, with its classes from the column's values.

    The kind is inferred where it is not given: two distinct values are binary; strings, and whole numbers with at most
    ``FEW`` distinct values, a classification; other numbers a regression. Of two classes the second in order (of numbers,
    or of the alphabet: ``yes`` after ``no``) is the positive one.

    Raises:
        InputError: an unknown column or kind; every label missing; a single class or value; an infinite value; text where
            numbers are expected; more than ``MANY`` classes.
    """
    column, kind = _parse(target, frame.columns, name)
    where = f"{name}: target {column!r}"
    values = _present(frame[column])
    if len(values) == 0:
        raise InputError(f"{where}: all {len(frame)} labels are missing, expected some")
    if kind == "regression" or (kind is None and _is_measure(values)):
        _check_numbers(frame[column], column, name)
        if len(set(values.head(1000))) == 1 and values.n_unique() == 1:
            raise InputError(f"{where}: every value is {values[0]!r}, expected values that differ")
        return Task.regression(column, scale="standard")
    if values.dtype in (pl.Date, pl.Datetime, pl.Time, pl.Duration) or values.dtype.is_nested():
        raise InputError(f"{where}: its type is {values.dtype}, expected numbers or names of classes")
    classes = _classes(values)
    if len(classes) < 2:
        raise InputError(f"{where}: every label is {classes[0]!r}, expected at least two classes")
    if len(classes) > MANY:
        raise InputError(f"{where}: {len(classes)} classes, expected at most {MANY} (a number can be {column}:regression)")
    kind = kind or ("binary" if len(classes) == 2 else "classification")
    if kind == "binary":
        if len(classes) != 2:
            raise InputError(f"{where}: {len(classes)} classes ({', '.join(classes[:5])}), expected 2 for binary")
        return Task.binary(column, classes=classes)
    return Task.ordinal(column, classes=classes) if kind == "ordinal" else Task.classification(column, classes=classes)


def labels(values: pl.Series, task: Task, name: str = "table") -> Tensor:
    """A target column as ``task``'s labels, ``(N,)``: float32 for binary and regression (NaN where missing), else int64.

    Raises:
        InputError: a value that is no number for a regression, or none of the task's classes, with its row.
    """
    if isinstance(task, Regression):
        _check_numbers(values, values.name, name)
        return torch.from_numpy(typed(values, "numeric").to_numpy().astype(np.float32))
    if not isinstance(task, Binary | Classification | Ordinal):
        raise InputError(f"{name}: target {task.name!r}: {task.kind} cannot be read from a column: known: {TARGET_KINDS}")
    names = typed(values, "categorical")
    codes = names.cast(pl.Enum(task.classes), strict=False).to_physical().cast(pl.Int64)
    for row in (codes.is_null() & names.is_not_null()).arg_true():
        known = suggest(names[row], task.classes)
        raise InputError(f"{name}: row {row + 1}, column {values.name!r}: {names[row]!r} is none of its classes: {known}")
    if isinstance(task, Binary):
        return torch.from_numpy(codes.cast(pl.Float32).to_numpy().copy())
    return torch.from_numpy(codes.fill_null(MISSING).to_numpy().copy())


def describe(task: Task, train: Tensor) -> str:
    """One line on an inferred target, such as ``target income: binary (7.6 % '50000+.' of 59857 labels)``."""
    known = train[task.present(train)]
    if isinstance(task, Binary):
        detail = f"{100 * float(known.mean()):.1f} % {task.classes[1]!r} of {len(known)} labels"
    elif isinstance(task, Classification | Ordinal):
        detail = f"{len(task.classes)} classes, {len(known)} labels"
    else:
        detail = (
            f"mean {float(known.mean()):.4g}, from {float(known.min()):.4g} to {float(known.max()):.4g}, {len(known)} labels"
        )
    return f"target {task.name}: {task.kind} ({detail})"


def check_classes(tasks: Sequence[Task], targets: Mapping[str, Mapping[str, Tensor]], name: str) -> list[str]:
    """`InputError` for a class that training never sees; warnings for parts in which a target cannot be scored."""
    warnings = []
    for task in tasks:
        known = {part: values[task.name][task.present(values[task.name])] for part, values in targets.items()}
        for part, values in known.items():
            if len(values) == 0 and part == "train":
                raise InputError(f"{name}: target {task.name!r}: no label in the training part, expected some")
            if len(values) == 0:
                warnings.append(f"target {task.name!r} has no label in the {part} part")
        if isinstance(task, Binary | Classification | Ordinal):
            seen = {part: values.long().bincount(minlength=len(task.classes)) for part, values in known.items()}
            for i, label in enumerate(task.classes):
                elsewhere = {part: int(seen[part][i]) for part in PARTS[1:] if int(seen[part][i])}
                if int(seen["train"][i]) == 0 and elsewhere:
                    counts = " and ".join(f"{count} rows of the {part} part" for part, count in elsewhere.items())
                    raise InputError(
                        f"{name}: target {task.name!r}: class {label!r} is only in {counts}, none for training: "
                        "expected more rows of it, a stratified split, or a condition (where) that leaves it out"
                    )
            if int((seen["train"] > 0).sum()) < 2:
                label = task.classes[int(seen["train"].argmax())]
                raise InputError(f"{name}: target {task.name!r}: every training label is {label!r}, expected two classes")
    return warnings


def _parse(target: str, columns: Sequence[str], name: str) -> tuple[str, str | None]:
    if target in columns:
        return target, None
    column, colon, kind = target.rpartition(":")
    if colon and column in columns:
        if kind not in TARGET_KINDS:
            raise InputError(f"{name}: target {target!r}: unknown kind {kind!r}: {suggest(kind, TARGET_KINDS)}")
        return column, kind
    raise InputError(f"{name}: unknown target column {column or target!r}: {suggest(column or target, columns)}")


def _present(values: pl.Series) -> pl.Series:
    values = (typed(values, "categorical") if values.dtype == pl.String else values).drop_nulls()
    return values.drop_nans() if values.dtype.is_float() else values


def _is_measure(values: pl.Series) -> bool:
    """Whether numbers are to be regressed: they have more than two distinct values, and not just a few whole ones."""
    if not values.dtype.is_numeric():
        return False
    few = values.head(10_000).n_unique() <= FEW and values.n_unique() <= FEW
    whole = values.dtype.is_integer() or bool((values == values.cast(pl.Float64).floor()).all())
    return not (few and (whole or values.n_unique() <= 2))


def _classes(values: pl.Series) -> list[str]:
    """Distinct values as names, in the order of the numbers or of the alphabet."""
    distinct = values.unique().cast(pl.String) if values.dtype in (pl.Categorical, pl.Enum) else values.unique()
    return typed(distinct.sort(), "categorical").to_list()


def _check_numbers(values: pl.Series, column: str, name: str) -> None:
    wrong = misfits(values, "numeric") | typed(values, "numeric").is_infinite().fill_null(False)
    for row in wrong.arg_true():
        raise InputError(f"{name}: row {row + 1}, target {column!r}: {values[row]!r}, expected a finite number")
