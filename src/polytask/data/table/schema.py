"""A table's fitted preprocessing: which columns are used and how each becomes numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.data.table.columns import WORDS, Category, Number, Text, Tokens
from polytask.data.table.kinds import EXPECTED, KINDS, infer_kind, misfits, parts, typed
from polytask.data.table.sentences import Sentences
from polytask.errors import InputError, suggest

CHUNK = 65_536
"""Rows that are transformed at a time: their numbers stay in the processor's cache."""

FIT_ROWS = 200_000
"""Values that distributions of numbers are estimated from, at most."""

LEAST_IDS = 100
"""Rows from which on a column may be taken for an id."""


@dataclass(frozen=True, eq=False)
class Schema:
    """The columns that a model reads, their kinds, and their fitted transforms.

    Attributes:
        kinds: the kind of each feature column that is used, in the table's order.
        numbers, categories, texts: the transforms, in the order of the tensors' columns.
        warnings: what fitting noticed: columns left out and why, infinite values, hashed categories. One line each.
        sentences: what reads the texts, if a pretrained encoder does.
    """

    kinds: Mapping[str, str]
    numbers: Sequence[Number]
    categories: Sequence[Category]
    texts: Sequence[Text | Tokens]
    warnings: Sequence[str] = ()
    sentences: Sentences | None = None

    @classmethod
    def fit(
        cls,
        frame: pl.DataFrame,
        kinds: Mapping[str, str] | None = None,
        name: str = "table",
        rows: NDArray[np.int64] | None = None,
        sentences: Sentences | None = None,
    ) -> Schema:
        """Fitted to ``frame``, the training rows and feature columns.

        Args:
            frame: features only.
            kinds: kinds of columns that are not to be inferred, any of `KINDS`; such a column is never left out as an id.
            name: of the table, for errors.
            rows: the rows' numbers in the table, for errors; from 1 by default.
            sentences: a pretrained encoder's tokenizer and configuration, to read the texts by; by default words are hashed.

        Raises:
            InputError: no usable column; an unknown column or kind in ``kinds``; a value that does not fit its kind.
        """
        given = dict(kinds or {})
        for column, kind in given.items():
            if column not in frame.columns:
                raise InputError(f"{name}: unknown column {column!r}: {suggest(column, frame.columns)}")
            if kind not in KINDS:
                raise InputError(f"{name}: column {column!r}: unknown kind {kind!r}: {suggest(kind, KINDS)}")
        used: dict[str, str] = {}
        fields: list[Number | Category | Text | Tokens] = []
        warnings: list[str] = []
        for column in frame.columns:
            guess = given.get(column) or infer_kind(frame[column])
            if guess is None:
                warnings.append(f"column {column!r} is left out: its type is {frame[column].dtype}")
                continue
            values = _checked(frame[column], guess, name, rows)
            known = values.filter(values.is_finite()) if guess == "numeric" else values.drop_nulls()
            reason = _useless(known, len(values)) or (None if column in given else _id(known, guess, frame[column].dtype))
            if reason:
                warnings.append(f"column {column!r} is left out: {reason}")
                continue
            used[column] = guess
            new = list(_fit_fields(column, guess, known, missing=len(known) < len(values), sentences=sentences))
            fields += new
            if guess == "numeric" and (infinite := int(values.is_infinite().sum())):
                warnings.append(f"column {column!r}: {infinite} infinite values are read as missing")
            warnings += [
                f"column {column!r}: {known.n_unique()} categories are hashed into {field.size - 2}"
                for field in new
                if isinstance(field, Category) and field.hashed
            ]
        if not used:
            raise InputError(f"{name}: no usable feature column ({'; '.join(warnings) or 'all columns are targets'})")
        numbers = tuple(field for field in fields if isinstance(field, Number))
        categories = tuple(field for field in fields if isinstance(field, Category))
        texts = tuple(field for field in fields if isinstance(field, Text | Tokens))
        return cls(used, numbers, categories, texts, tuple(warnings), sentences if texts else None)

    def transform(
        self, frame: pl.DataFrame, name: str = "table", rows: NDArray[np.int64] | None = None
    ) -> dict[str, Tensor]:
        """``frame``'s rows as an encoder's inputs; columns that the schema does not use are ignored. Never NaN.

        Args:
            frame: with at least the columns of `kinds`.
            name: of the table, for errors.
            rows: the rows' numbers in the table, for errors; from 1 by default.

        Returns:
            ``numeric`` float32 ``(N, D)``: ranks in [-1, 1], a column for each of `numbers`; ``missing`` float32 ``(N, M)``:
            1 where a value is missing, for the numbers that had missing values in training; ``categorical`` int32
            ``(N, C)``: codes; ``text`` int32 ``(N, T, L)``: codes of words, or of tokens. A key whose tensor has no column
            is left out.

        Raises:
            InputError: a column is missing from ``frame``, or a value does not fit its column's kind.
        """
        self.check_columns(frame.columns, name)
        count = len(frame)
        length = max((text.length for text in self.texts), default=0)
        arrays: dict[str, NDArray[Any]] = {
            "numeric": np.empty((count, len(self.numbers)), np.float32),
            "missing": np.empty((count, len(self.missing_numbers)), np.float32),
            "categorical": np.empty((count, len(self.categories)), np.int32),
            "text": np.zeros((count, len(self.texts), length), np.int32),
        }
        numbered = np.arange(1, count + 1) if rows is None else rows
        for start in range(0, count, CHUNK):
            part = slice(start, start + CHUNK)
            self._encode(frame[part], {key: array[part] for key, array in arrays.items()}, name, numbered[part])
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
            "sentences": self.sentences.config if self.sentences else None,
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
            "sentences": asdict(self.sentences) if self.sentences else None,
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
        sentences = Sentences(**values["sentences"]) if values.get("sentences") else None
        kind = Tokens if sentences else Text
        texts = tuple(kind(**settings) for settings in values["texts"])
        return cls(values["kinds"], tuple(numbers), tuple(categories), texts, tuple(values["warnings"]), sentences)

    def _encode(self, chunk: pl.DataFrame, arrays: Mapping[str, NDArray[Any]], name: str, rows: NDArray[np.int64]) -> None:
        """Fill ``arrays``, which are of the chunk's rows."""
        columns = {column: _checked(chunk[column], kind, name, rows) for column, kind in self.kinds.items()}
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
            values = columns[text.column]
            codes = text.encode(values, self.sentences.tokenizer()) if isinstance(text, Tokens) else text.encode(values)  # type: ignore[union-attr]
            arrays["text"][:, i, : text.length] = codes


def _checked(raw: pl.Series, kind: str, name: str, rows: NDArray[np.int64] | None) -> pl.Series:
    """``raw`` as the type of ``kind``; `InputError` at the first value that does not fit it."""
    values = typed(raw, kind)
    if kind in EXPECTED and values.null_count() > raw.null_count():
        for i in misfits(raw, kind).arg_true():
            row = i + 1 if rows is None else rows[i]
            raise InputError(f"{name}: row {row}, column {raw.name!r}: {raw[i]!r}, expected {EXPECTED[kind]}")
    return values


def _fit_fields(
    column: str, kind: str, known: pl.Series, missing: bool, sentences: Sentences | None
) -> Iterator[Number | Category | Text | Tokens]:
    """What a column becomes, fitted to its ``known`` values; ``missing``: whether others are missing."""
    if kind == "text":
        yield Tokens.fit(column, known, sentences.tokenizer()) if sentences else Text.fit(column, known)
    elif kind in ("categorical", "boolean"):
        yield Category.fit(column, known)
    else:
        if len(known) > FIT_ROWS:
            known = known[np.sort(np.random.default_rng(0).choice(len(known), FIT_ROWS, replace=False))]
        for part, values in parts(known, kind).items():
            if part in ("value", "time") or values.min() != values.max():
                yield Number.fit(column, part, values.to_numpy(), missing and part in ("value", "time"))


def _useless(known: pl.Series, rows: int) -> str | None:
    """Why a column with these ``known`` values in so many ``rows`` cannot help; ``None`` when it may."""
    if len(known) == 0:
        return "every value is missing"
    if len(known) == rows and bool((known.head(1000) == known[0]).all()) and known.n_unique() == 1:
        return "it has one value in the training part"
    return None


def _id(known: pl.Series, kind: str, dtype: pl.DataType) -> str | None:
    """Why a column is taken for an id: strings that all differ, or whole numbers that all differ and hardly skip any."""
    if len(known) < LEAST_IDS or not (dtype.is_integer() or (kind == "categorical" and dtype == pl.String)):
        return None
    if known.head(LEAST_IDS).n_unique() < LEAST_IDS or known.n_unique() < len(known):
        return None
    if kind == "numeric":
        values = known.to_numpy()
        if values.max() - values.min() > 4 * len(known):
            return None
    return "it looks like an id, every value differs"
