"""Rows of events in files: columns by their names, or by their places as JODIE's data sets have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from polytask.data.table import Chunk, Reads, first_fields, read_rows, readable
from polytask.data.table.read import CHUNK_ROWS
from polytask.data.temporal.load import load_events
from polytask.errors import InputError, quoted

SOURCE, TARGET, TIME, LABEL = "source", "target", "timestamp", "label"
"""The columns of an event; the last may be left out."""

NAMED = (SOURCE, TARGET, TIME)


class Layout(NamedTuple):
    """How a file has its events.

    Attributes:
        names: of its columns, where they go by their places; ``None``: the file names them.
        header: whether the file has one.
        apart: whether its sources and its destinations are of two kinds, each with ids of its own.
        text: what its columns were taken for, in one line.
    """

    names: Sequence[str] | None
    header: bool
    apart: bool
    text: str


def layout(path: Path, separator: str | None = None) -> Layout:
    """How the file at ``path`` has its events.

    A table with the columns ``source``, ``target`` and ``timestamp`` has nodes of one kind, as an ``.npz`` has. Any other
    text is as JODIE's: user, item, timestamp, state label, features, whatever its header says.
    """
    named = Layout(None, True, False, "events: from source to target at timestamp, nodes of one kind")
    if path.suffix == ".npz":
        return named
    first, *rest = first_fields(path, separator) or [list(NAMED)]
    if set(NAMED) <= set(first):
        return named
    header = numbers(pl.Series(first[2:3] or [""])).null_count() > 0
    many = len((rest or [[]])[0] if header else first)
    if many < len(NAMED):
        raise InputError(
            f"{path}: {many} fields in row 1, expected the columns source, target and timestamp, or user, item and "
            "timestamp in front"
        )
    names = [*NAMED, LABEL, *(f"feature {k}" for k in range(1, many - 3))][:many]
    called = f" ({', '.join(first[:3])})" if header else ""
    return Layout(names, header, True, f"events: from user to item at timestamp, by place{called}, users and items apart")


def event_rows(path: Path, schema: Reads, how: Layout, separator: str | None = None) -> Iterator[Chunk]:
    """The rows of a file that ``schema`` can read, chunk by chunk; the columns are `SOURCE`, `TARGET`, `TIME`, ...

    Of text and tables in constant memory; an ``.npz`` is read as a whole.
    """
    if path.suffix == ".npz":
        return readable(_arrays(path), schema, path)
    return read_rows(path, schema, separator=separator, names=how.names, header=how.header)


def check_columns(columns: Sequence[str], wanted: Sequence[str], name: str) -> None:
    """Raise `InputError` where one of ``wanted`` is missing."""
    for column in wanted:
        if column not in columns:
            raise InputError(f"{name}: the column {column!r} is missing, expected {', '.join(wanted)}")


def numbers(column: pl.Series) -> pl.Series:
    """A column as float64, null where there is no finite number."""
    if column.dtype.is_nested():
        return pl.Series(column.name, [None] * len(column), dtype=pl.Float64)
    found = (column.str.strip_chars() if column.dtype == pl.String else column).cast(pl.Float64, strict=False)
    return found.set(~found.is_finite().fill_null(False), None)


def ids(column: pl.Series) -> pl.Series:
    """A column of ids as text."""
    return column.cast(pl.String).str.strip_chars()


def no_numbers(frame: pl.DataFrame, columns: Sequence[str]) -> dict[int, str]:
    """For the place of each row that has no number in one of ``columns``, why it cannot be read."""
    found: dict[int, str] = {}
    for column in columns:
        for row in numbers(frame[column]).is_null().arg_true():
            value = frame[column][row]
            what = "missing" if value is None else quoted(value)
            found.setdefault(row, f"column {column!r}: {what}, expected a number")
    return found


class AnyRows:
    """Reads rows of any nodes. What the first rows have in further columns, where that is numbers, is the features.

    Attributes:
        features, left: the names of further columns: features, and those that are left out.
        labelled: whether there is a column of labels.
    """

    def __init__(self) -> None:
        self.features: list[str] | None = None
        self.left: list[str] = []
        self.labelled = False

    def check_columns(self, columns: Sequence[str], name: str) -> None:
        check_columns(columns, NAMED, name)

    def misfits(self, frame: pl.DataFrame) -> Mapping[int, str]:
        if self.features is None:
            others = [column for column in frame.columns if column not in NAMED]
            count = [c for c in others if numbers(frame[c]).null_count() == frame[c].null_count() < len(frame)]
            self.left = [column for column in others if column not in count]
            self.labelled = LABEL in count
            self.features = [column for column in count if column != LABEL]
        found = no_numbers(frame, [TIME, *([LABEL] if self.labelled else []), *self.features])
        for column in (SOURCE, TARGET):
            for row in frame[column].is_null().arg_true():
                found.setdefault(row, f"column {column!r}: missing, expected the id of a node")
        return found

    def typed(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns that count, ids as text and the rest as numbers."""
        small = [numbers(frame[c]).cast(pl.Float32) for c in [*([LABEL] if self.labelled else []), *(self.features or [])]]
        return pl.DataFrame([ids(frame[SOURCE]), ids(frame[TARGET]), numbers(frame[TIME]), *small])


def _arrays(path: Path) -> Iterator[Chunk]:
    events = load_events(path)
    columns = {SOURCE: events.source, TARGET: events.destination, TIME: events.time}
    if events.labels is not None:
        columns[LABEL] = events.labels
    if events.features is not None:
        columns |= {f"feature {k + 1}": events.features[:, k] for k in range(events.width)}
    for start in range(0, len(events), CHUNK_ROWS):
        frame = pl.DataFrame({name: column[start : start + CHUNK_ROWS].numpy() for name, column in columns.items()})
        yield Chunk(frame, pl.int_range(start + 1, start + 1 + len(frame), eager=True), {})
