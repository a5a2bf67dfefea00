"""The events of a file, split by time, to train a model on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from polytask.data.examples import PARTS
from polytask.data.temporal.batches import EventBatches
from polytask.data.temporal.events import Events
from polytask.data.temporal.rows import LABEL, AnyRows, event_rows, layout
from polytask.data.temporal.schema import EventSchema
from polytask.data.temporal.split import EventSplit, split_events
from polytask.errors import InputError
from polytask.files import sha256


@dataclass(frozen=True, eq=False)
class EventData:
    """Events in three parts, one after the other in time, and the ids of their nodes.

    Attributes:
        name: what to call them in reports.
        split: the parts.
        schema: the ids of the nodes, and the columns.
        provenance: where they came from, as JSON values.
    """

    name: str
    split: EventSplit
    schema: EventSchema
    provenance: Mapping[str, Any]

    @property
    def train(self) -> Events:
        return self.split.train

    @property
    def validation(self) -> Events:
        return self.split.validation

    @property
    def test(self) -> Events:
        return self.split.test

    def batches(self, part: str, batch_size: int, seed: int = 0) -> EventBatches:
        """As `EventSplit.batches`, with random negatives."""
        return self.split.batches(part, batch_size, seed=seed)


def load_event_data(path: Path | str, *, separator: str | None = None) -> EventData:
    """The events of a file, split at the 0.70 and the 0.85 quantile of time; ids of nodes may be text.

    - A table (CSV, TSV, gzip too, Parquet, Arrow) with the columns ``source``, ``target`` and ``timestamp``, and perhaps
      ``label``: nodes are of one kind. Further columns are features where they hold numbers.
    - Text as JODIE's data sets have it, ``user, item, timestamp, state label, feature, feature, ...``: users and items are
      of two kinds.
    - ``.npz``, as `load_events` takes it: nodes are of one kind.

    Raises:
        InputError: naming file and row: a time that is missing, no number, or before that of the row in front of it; a node
            that is missing; a feature that is no number. Also a part that would be empty.
    """
    path = Path(path)
    how, rows = layout(path, separator), AnyRows()
    parts, places = [], []
    for chunk in event_rows(path, rows, how, separator):
        for row, reason in chunk.bad.items():
            raise InputError(f"{path}: row {row}: {reason}")
        parts.append(rows.typed(chunk.frame))
        places.append(chunk.rows)
    if not parts:
        raise InputError(f"{path}: no events, expected at least one")
    frame = pl.concat(parts)
    schema = EventSchema.of(frame, how.apart, rows.features or [], rows.labelled)
    split = split_events(schema.events(frame, pl.concat(places), str(path)))
    return EventData(
        path.stem,
        split,
        schema,
        {
            "source": str(path),
            "sha256": sha256(path),
            "rows": {part: len(getattr(split, part)) for part in PARTS},
            "report": [how.text, _described(schema, rows.left)],
        },
    )


def _described(schema: EventSchema, left: list[str]) -> str:
    found = f"{len(schema.nodes):,} nodes, {len(schema.nodes) - schema.first:,} of them destinations"
    names = list(schema.features)
    shown = ", ".join(names if len(names) < 6 else [names[0], "...", names[-1]])
    features = f"{len(names)} features of each event ({shown})" if names else "no features"
    label = f", {LABEL}" if schema.labelled else ""
    return f"stream: {found}, {features}{label}" + (f"; left out, no numbers: {', '.join(left)}" if left else "")
