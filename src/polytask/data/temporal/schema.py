"""How rows of a file become a model's events: nodes by their ids, features by their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from polytask.data.temporal.events import Events
from polytask.data.temporal.rows import (
    LABEL,
    NAMED,
    SOURCE,
    TARGET,
    TIME,
    check_columns,
    event_rows,
    ids,
    layout,
    no_numbers,
)
from polytask.data.temporal.rows import numbers as as_numbers
from polytask.errors import InputError, quoted


@dataclass(frozen=True, eq=False)
class EventSchema:
    """The nodes of a stream, and what is read of an event beside its nodes and its time.

    Attributes:
        nodes: their ids as text, in order of their numbers; those that have been a destination come last.
        first: the number of the first of these.
        apart: whether sources and destinations are of two kinds, such as users and items, so that an id names a node of its
            own in each column.
        features: the columns of an event's features.
        labelled: whether events have labels: the column ``label``, which later events may leave out.
    """

    nodes: Sequence[str]
    first: int
    apart: bool = False
    features: Sequence[str] = ()
    labelled: bool = False

    @classmethod
    def of(cls, frame: pl.DataFrame, apart: bool, features: Sequence[str], labelled: bool) -> EventSchema:
        """The nodes in ``frame``, whose columns ``source`` and ``target`` are text, in the order that they come in."""
        sources, targets = (frame[column].unique(maintain_order=True) for column in (SOURCE, TARGET))
        others = sources if apart else sources.filter(~sources.is_in(targets.implode()))
        return cls([*others, *targets], len(others), apart, list(features), labelled)

    @property
    def destinations(self) -> Tensor:
        """The numbers of nodes that have been a destination."""
        return torch.arange(self.first, len(self.nodes))

    def check_columns(self, columns: Sequence[str], name: str = "table") -> None:
        """Raises `InputError` where a column of events is missing."""
        check_columns(columns, [*NAMED, *self.features], name)

    def misfits(self, frame: pl.DataFrame) -> dict[int, str]:
        """For each row that is no event of these nodes, by its place in the frame, why."""
        found = no_numbers(frame, [TIME, *self._label(frame), *self.features])
        for column in (SOURCE, TARGET):
            for row in self._places(frame, column).is_null().arg_true():
                value = frame[column][row]
                what = "missing" if value is None else f"unknown node {quoted(str(value))}"
                found.setdefault(row, f"column {column!r}: {what}, expected the id of a node that the model was trained on")
        return found

    def events(self, frame: pl.DataFrame, rows: pl.Series, name: str) -> Events:
        """The rows of ``frame``, which have no misfits, as events; ``rows`` are their numbers.

        Raises:
            InputError: a time before that of the row in front of it.
        """
        features = [_tensor(frame[column]).float() for column in self.features]
        return Events(
            name,
            *self.ends(frame),
            _tensor(frame[TIME]),
            torch.stack(features, 1) if features else None,
            _tensor(frame[LABEL]).float() if self._label(frame) else None,
            len(self.nodes),
            torch.from_numpy(rows.cast(pl.Int64).to_numpy().copy()),
        )

    def ends(self, frame: pl.DataFrame) -> tuple[Tensor, Tensor]:
        """The numbers of the rows' sources and destinations, ``(B,)`` each."""
        source, target = (torch.from_numpy(self._places(frame, column).to_numpy().copy()) for column in (SOURCE, TARGET))
        return source, target

    def load(self, path: Path, separator: str | None = None) -> Events:
        """All events of a file. Raises `InputError` for the first row that is none of these nodes, or goes back in time."""
        parts = []
        for chunk in event_rows(path, self, layout(path, separator), separator):
            for row, reason in chunk.bad.items():
                raise InputError(f"{path}: row {row}: {reason}")
            parts.append(self.events(chunk.frame, chunk.rows, str(path)))
        if not parts:
            raise InputError(f"{path}: no events, expected at least one")
        return Events.joined(parts)

    def questions(self, since: float) -> Questions:
        """What reads rows that ask about an event at or after the time ``since``."""
        return Questions(self, since)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; `from_json` reads them."""
        return {"kind": "events", **{name: getattr(self, name) for name in self.__dataclass_fields__}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EventSchema:
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})

    def _label(self, frame: pl.DataFrame) -> list[str]:
        return [LABEL] if self.labelled and LABEL in frame.columns else []

    @cached_property
    def _tables(self) -> dict[str, pl.DataFrame]:
        table = pl.DataFrame({"id": pl.Series(list(self.nodes), dtype=pl.String)}).with_row_index("place")
        if not self.apart:
            return {SOURCE: table, TARGET: table}
        return {SOURCE: table[: self.first], TARGET: table[self.first :]}

    def _places(self, frame: pl.DataFrame, column: str) -> pl.Series:
        asked = pl.DataFrame({"id": ids(frame[column])})
        return asked.join(self._tables[column], on="id", how="left", maintain_order="left")["place"].cast(pl.Int64)


class Questions:
    """Reads rows that ask about an event: ``source``, ``target`` and ``timestamp``, in any order of time."""

    def __init__(self, schema: EventSchema, since: float) -> None:
        self.schema = EventSchema(schema.nodes, schema.first, schema.apart)
        self.since = since

    def check_columns(self, columns: Sequence[str], name: str = "table") -> None:
        self.schema.check_columns(columns, name)

    def misfits(self, frame: pl.DataFrame) -> dict[int, str]:
        found = self.schema.misfits(frame)
        times = as_numbers(frame[TIME])
        for row in (times < self.since).arg_true():
            reason = f"column {TIME!r}: {times[row]} before {self.since}, the last event that the memory has seen"
            found.setdefault(row, reason)
        return found

    def tensors(self, frame: pl.DataFrame) -> tuple[Tensor, Tensor, Tensor]:
        """Sources, destinations and times ``(B,)`` of rows that have no misfits."""
        return *self.schema.ends(frame), _tensor(frame[TIME])


def _tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(as_numbers(column).to_numpy().copy())
