"""A saved model of events on rows of a file: questions that leave the memory as it is, or events that enter it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from polytask.data.temporal import EventBatch, EventBatches, Events, event_rows, layout
from polytask.errors import InputError
from polytask.events.store import SavedEvents, save_again
from polytask.files import check_replaceable
from polytask.predicting import ROW, Predicted, check_output, write_frames
from polytask.training import Metrics


def predict_events(
    saved: SavedEvents,
    source: Path | str,
    out: Path | str,
    *,
    observe: Path | str | None = None,
    batch_size: int = 1,
    separator: str | None = None,
    batch_rows: int = 4096,
    on_bad: Callable[[int, str], None] = lambda row, reason: None,
) -> Predicted:
    """Score the event in every row of a file, in constant memory: columns ``row``, ``score`` and ``probability``.

    A row is a question about an event, by what the memory has seen, and no answer changes another. With ``observe`` it is an
    event: it is scored, then enters the memory, and the model with the memory of the end is saved, once ``out`` is whole.
    Who goes on from there predicts the same as who was given both files in one. ``saved.model`` has that memory then.

    Rows of unknown nodes, or that cannot be read, are reported, are not in the output, and enter no memory.

    Args:
        saved: a model of events.
        source: as `polytask.data.temporal.load_event_data` takes it; questions need no features, and no order.
        out: as for `polytask.predicting.predict_table`.
        observe: a folder to save the model in, which may be its own; ``None``: rows are questions.
        batch_size: observed events that are scored before any of them enters. More than 1 is faster, and sees less.
        separator: between a text file's fields.
        batch_rows: questions that are scored at a time.
        on_bad: called with the number and the reason of each row that cannot be read.

    Raises:
        InputError: no row can be read, a column is missing, or a file cannot be read or written; with ``observe`` a time
            before that of the row in front of it, or before the memory's last event.
    """
    source, out = Path(source), Path(out)
    check_output(source, out)
    if observe is not None:
        check_replaceable(observe)
    how, done = layout(source, separator), Predicted()
    model, schema = saved.model, saved.schema

    def bad(reasons: dict[int, str]) -> None:
        for row, reason in reasons.items():
            done.bad += 1
            on_bad(row, reason)

    def answers() -> Iterator[pl.DataFrame]:
        reads = schema.questions(model.seen[1])
        for chunk in event_rows(source, reads, how, separator):
            bad(chunk.bad)
            for start in range(0, len(chunk.frame), batch_rows):
                part = slice(start, start + batch_rows)
                yield frame(chunk.rows[part], model.score(*reads.tensors(chunk.frame[part])))

    def observed() -> Iterator[pl.DataFrame]:
        for chunk in event_rows(source, schema, how, separator):
            bad(chunk.bad)
            if len(chunk.frame):
                events = schema.events(chunk.frame, chunk.rows, str(source))
                check_later(saved, events)
                yield frame(chunk.rows, torch.cat([model.follow(batch) for batch in _batches(saved, events, batch_size)]))

    def frame(rows: pl.Series, logits: Tensor) -> pl.DataFrame:
        done.rows += len(rows)
        return pl.DataFrame({ROW: rows, "score": logits.float().numpy(), "probability": logits.float().sigmoid().numpy()})

    write_frames(answers() if observe is None else observed(), source, out, done)
    if observe is not None:
        save_again(saved, observe)
    return done


def evaluate_events(saved: SavedEvents, source: Path | str, *, separator: str | None = None) -> tuple[Metrics, int]:
    """AP and AUC on later events, which follow what the memory has seen and leave it as it was; and how many there are.

    Batches and random negatives are as in training's evaluation; negatives are drawn among nodes that were destinations.

    Raises:
        InputError: a row that cannot be read or is of an unknown node: a judgement on part of the rows would mislead. Also
            events before the memory's last.
    """
    events = saved.schema.load(Path(source), separator)
    check_later(saved, events)
    recipe = saved.about["recipe"]
    size, seed = recipe.get("settings", {}).get("batch_size", 200), recipe.get("seed", 0)
    destinations, before = saved.schema.destinations, saved.model.seen[0]
    batches = EventBatches(events, size, seed=seed, before=before, destinations=destinations)
    return saved.model.evaluate(batches), len(events)


def check_later(saved: SavedEvents, events: Events) -> None:
    """Raise `InputError` where the first event is before the last one that the memory has seen."""
    _, until = saved.model.seen
    if events.time[0] < until:
        raise InputError(
            f"{events.name}: row {int(events.rows[0])}: time {events.time[0].item()} before {until}, the last event that "
            "the memory has seen, expected events after it"
        )


def _batches(saved: SavedEvents, events: Events, size: int) -> Iterator[EventBatch]:
    for start in range(0, len(events), size):
        yield EventBatch.of(events, slice(start, start + size), position=saved.model.seen[0])
