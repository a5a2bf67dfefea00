"""A table's fitted preprocessing: which columns are used and how each becomes numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.table.columns import WORDS, Category, Number, Text
from polytask.data.table.kinds import EXPECTED, KINDS, infer_kind, misfits, parts, typed
from polytask.errors import InputError, suggest

CHUNK = 65_536
"""Rows that are transformed at a time: their numbers stay in the processor's cache."""

FIT_ROWS = 200_000
"""Rows that distributions of numbers are estimated from."""


@dataclass(frozen=True, eq=False)
class Schema:
    """The columns that a model reads, their kinds, and their fitted transforms.

    Attributes:
        kinds: the kind of each feature column that is used, in the table's order.
        numbers, categories, texts: the transforms, in the order of the tensors' columns.
        warnings: what fitting noticed: columns left out and why, infinite values, hashed categories. One line each.
    """

    kinds: Mapping[str, str]
    numbers: Sequence[Number]
    categories: Sequence[Category]
    texts: Sequence[Text]
    warnings: Sequence[str] = ()

    @classmethod
    def fit(cls, frame: pl.DataFrame, kinds: Mapping[str, str] | None = None, name: str = "table") -> Schema:
        """Fitted to ``frame``, the training rows and feature columns.

        Args:
            frame: features only.
            kinds: kinds of columns that are not to be inferred, any of `KINDS`; such a column is never left out as an id.
            name: of the table, for errors.

        Raises:
            InputError: no usable column; an unknown column or kind in ``kinds``; a value that does not fit its kind.
        """
        given = dict(kinds or {})
        for column, kind in given.items():
            if column not in frame.columns:
                raise InputError(f"{name}: unknown column {column!r}: {suggest(column, frame.columns)}")
            if kind not in KINDS:
                raise InputError(f"{name}: column {column!r}: unknown kind {kind!r}: {suggest(kind, KINDS)}")
        rng = np.random.default_rng(0)
        sample = np.sort(rng.choice(len(frame), FIT_ROWS, replace=False)) if len(frame) > FIT_ROWS else None
        used: dict[str, str] = {}
        numbers: list[Number] = []
        categories: list[Category] = []
        texts: list[Text] = []
        warnings: list[str] = []
        for column in frame.columns:
            raw = frame[column]
            guess = given.get(column) or infer_kind(raw)
            reason = _useless(raw, guess, column in given)
            if reason or guess is None:
                warnings.append(f"column {column!r} is left out: {reason}")
                continue
            kind = used[column] = guess
            values = _checked(raw, kind, name)
            if kind in ("numeric", "date"):
                infinite = int(values.is_infinite().sum()) if kind == "numeric" else 0
                if infinite:
                    warnings.append(f"column {column!r}: {infinite} infinite values are read as missing")
                finite = values.is_finite().sum() if kind == "numeric" else values.count()
                drawn = values if sample is None else values[sample]
                numbers += _fit_numbers(column, kind, drawn, missing=finite < len(values))
            elif kind == "text":
                texts.append(Text.fit(column, values))
            else:
                categories.append(Category.fit(column, values))
                if categories[-1].hashed:
                    distinct = values.n_unique()
                    warnings.append(f"column {column!r}: {distinct} categories are hashed into {categories[-1].size - 2}")
        if not used:
            raise InputError(f"{name}: no usable feature column ({'; '.join(warnings) or 'all columns are targets'})")
        return cls(used, tuple(numbers), tuple(categories), tuple(texts), tuple(warnings))

    def transform(self, frame: pl.DataFrame, name: str = "table") -> dict[str, Tensor]:
        """``frame``'s rows as an encoder's inputs; columns that the schema does not use are ignored. Never NaN.

        Returns:
            ``numeric`` float32 ``(N, D)``: ranks in [-1, 1], a column for each of `numbers`; ``missing`` float32 ``(N, M)``:
            1 where a value is missing, for the numbers that had missing values in training; ``categorical`` int32
            ``(N, C)``: codes; ``text`` int32 ``(N, T, L)``: codes of words. A key whose tensor has no column is left out.

        Raises:
            InputError: a column is missing from ``frame``, or a value does not fit its column's kind.
        """
        self.check_columns(frame.columns, name)
        rows = len(frame)
        length = max((text.length for text in self.texts), default=0)
        arrays: dict[str, NDArray[Any]] = {
            "numeric": np.empty((rows, len(self.numbers)), np.float32),
            "missing": np.empty((rows, len(self.missing_numbers)), np.float32),
            "categorical": np.empty((rows, len(self.categories)), np.int32),
            "text": np.zeros((rows, len(self.texts), length), np.int32),
        }
        for start in range(0, rows, CHUNK):
            stop = min(start + CHUNK, rows)
            chunk = frame[start:stop]
            self._encode(chunk, {key: array[start:stop] for key, array in arrays.items()}, name, start)
        return {key: torch.from_numpy(array) for key, array in arrays.items() if array.shape[1]}

    @property
    def missing_numbers(self) -> list[int]:
        """For each column of the tensor ``missing``, which column of ``numeric`` it is about."""
        return [i for i, number in enumerate(self.numbers) if number.missing]

    def encoder_settings(self) -> dict[str, Any]:
        """The keyword arguments with which `polytask.nn.tabular.TabularEncoder` takes what `transform` gives."""
        return {
            "numeric": len(self.numbers),
            "missing": len(self.missing_numbers),
            "categories": [category.size for category in self.categories],
            "texts": len(self.texts),
            "words": WORDS if self.texts else 1,
        }

    def check_columns(self, columns: Sequence[str], name: str = "table") -> None:
        """Raise `InputError` unless all columns that the schema uses are among ``columns``."""
        for column in self.kinds:
            if column not in columns:
                raise InputError(f"{name}: the column {column!r} is missing: {suggest(column, columns)}")

    def misfits(self, frame: pl.DataFrame) -> dict[int, str]:
        """What is wrong with rows of ``frame`` whose values do not fit their columns' kinds, by index from 0."""
        wrong: dict[int, str] = {}
        for column, kind in self.kinds.items():
            for row in misfits(frame[column], kind).arg_true():
                wrong.setdefault(row, f"column {column!r}: {frame[column][row]!r}, expected {EXPECTED[kind]}")
        return wrong

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON values; `tensors` has the rest."""
        return {
            "kinds": dict(self.kinds),
            "numbers": [{"column": n.column, "part": n.part, "missing": n.missing} for n in self.numbers],
            "categories": [
                {"column": c.column, "categories": list(c.categories), "hashed": c.hashed} for c in self.categories
            ],
            "texts": [{"column": t.column, "length": t.length} for t in self.texts],
            "warnings": list(self.warnings),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The numbers' distributions: for number ``i``, float64 tensors ``numbers.i.knots`` and ``numbers.i.ranks``."""
        arrays = {}
        for i, number in enumerate(self.numbers):
            arrays[f"numbers.{i}.knots"] = torch.from_numpy(number.knots)
            arrays[f"numbers.{i}.ranks"] = torch.from_numpy(number.ranks)
        return arrays

    @classmethod
    def from_json(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Schema:
        """The schema that `to_json` and `tensors` described."""
        numbers = [
            Number(**settings, knots=tensors[f"numbers.{i}.knots"].numpy(), ranks=tensors[f"numbers.{i}.ranks"].numpy())
            for i, settings in enumerate(values["numbers"])
        ]
        categories = [Category(c["column"], tuple(c["categories"]), c["hashed"]) for c in values["categories"]]
        texts = [Text(**settings) for settings in values["texts"]]
        return cls(values["kinds"], tuple(numbers), tuple(categories), tuple(texts), tuple(values["warnings"]))

    def _encode(self, chunk: pl.DataFrame, arrays: Mapping[str, NDArray[Any]], name: str, start: int) -> None:
        """Fill ``arrays``, of the chunk's rows; ``start`` is the number of rows before them."""
        columns = {column: _checked(chunk[column], kind, name, start) for column, kind in self.kinds.items()}
        numbers = {
            column: parts(columns[column], kind) for column, kind in self.kinds.items() if kind in ("numeric", "date")
        }
        indicator = 0
        for i, number in enumerate(self.numbers):
            arrays["numeric"][:, i], absent = number.encode(numbers[number.column][number.part].to_numpy())
            if number.missing:
                arrays["missing"][:, indicator] = absent
                indicator += 1
        for i, category in enumerate(self.categories):
            arrays["categorical"][:, i] = category.encode(columns[category.column])
        for i, text in enumerate(self.texts):
            arrays["text"][:, i, : text.length] = text.encode(columns[text.column])


def _checked(raw: pl.Series, kind: str, name: str, start: int = 0) -> pl.Series:
    """``raw`` as the type of ``kind``; `InputError` at the first value that does not fit it."""
    values = typed(raw, kind)
    if kind in EXPECTED and values.null_count() > raw.null_count():
        for row in misfits(raw, kind).arg_true():
            raise InputError(f"{name}: row {start + row + 1}, column {raw.name!r}: {raw[row]!r}, expected {EXPECTED[kind]}")
    return values


def _fit_numbers(column: str, kind: str, drawn: pl.Series, missing: bool) -> Iterator[Number]:
    """A `Number` for each part of the column that varies; ``drawn`` is a sample of its values."""
    for part, series in parts(drawn, kind).items():
        values = series.to_numpy()
        finite = values[np.isfinite(values)]
        if part == "value" or (len(finite) and finite.min() < finite.max()):
            yield Number.fit(column, part, values, missing and part in ("value", "time"))


def _useless(raw: pl.Series, kind: str | None, given: bool) -> str | None:
    """Why a column cannot help: its type, no value, one value, or an id; ``None`` when it may."""
    values = raw.drop_nulls()
    if values.dtype.is_float():
        values = values.drop_nans()
    if len(values) == 0:
        return "every value is missing"
    if kind is None:
        return f"its type is {raw.dtype}"
    if len(values) == len(raw) and bool((values.head(1000) == values[0]).all()) and values.n_unique() == 1:
        return "it has one value in the training part"
    whole = values.dtype.is_integer() or (kind == "categorical" and values.dtype == pl.String)
    if given or not whole or len(values) < 100 or values.head(1000).n_unique() < min(len(values), 1000):
        return None
    if values.n_unique() < len(values):
        return None
    if values.dtype.is_integer():
        low, high = values.min(), values.max()
        if isinstance(low, int) and isinstance(high, int) and high - low > 4 * len(values):
            return None  # whole numbers that are spread widely measure something
    return "it looks like an id, every value differs"
