"""A saved model on rows of a file: predictions in a stream of constant memory, and labelled rows to judge it by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from polars.io.plugins import register_io_source

from polytask.data.examples import Examples
from polytask.data.graph import GraphSchema, ask_about, load_graph_tasks, load_other
from polytask.data.table import labels, read_rows, read_table
from polytask.errors import InputError
from polytask.files import replacing
from polytask.nn.graph import GraphEncoder, adjacency

if TYPE_CHECKING:
    from polytask.data.graph import GraphData
    from polytask.data.table import Schema
    from polytask.nn.graph import CSR
    from polytask.store import Saved

ROW = "row"
"""The output's first column: the number of the input's row, from 1, the header not counted."""

SINKS: dict[str, Callable[[pl.LazyFrame, Path], Any]] = {
    ".parquet": lambda frame, path: frame.sink_parquet(path),
    ".csv": lambda frame, path: frame.sink_csv(path),
    ".tsv": lambda frame, path: frame.sink_csv(path, separator="\t"),
    ".arrow": lambda frame, path: frame.sink_ipc(path),
    ".feather": lambda frame, path: frame.sink_ipc(path),
}
"""How predictions are written, by the output's suffix."""


@dataclass
class Predicted:
    """What `predict_table` did: how many rows were predicted, and how many could not be read."""

    rows: int = 0
    bad: int = 0


def predict_table(
    saved: Saved,
    source: Path | str,
    out: Path | str,
    *,
    separator: str | None = None,
    batch_rows: int = 4096,
    on_bad: Callable[[int, str], None] = lambda row, reason: None,
) -> Predicted:
    """Predict every row of a table in a file, in constant memory.

    The output has the column ``row`` and each task's columns (`polytask.Task.table`): for labels the class's name and the
    classes' probabilities, for regression the value. It is written beside ``out``, then renamed.

    For a model of a graph the rows ask about nodes (a column ``id``), pairs of nodes (``source``, ``target``) or whole
    graphs (``graph``), and the tasks are those of that level.

    Args:
        saved: a model of a table, or of a graph.
        source: CSV, TSV (gzip too), Parquet or Arrow; columns that the model does not read are ignored.
        out: ends in one of `SINKS`.
        separator: between a text file's fields; by default a comma, or a tab for ``.tsv``.
        batch_rows: rows that the model is given at a time.
        on_bad: called with the number and the reason of each row that cannot be read; such a row is not in the output.

    Raises:
        InputError: ``source`` cannot be read, lacks a column, or none of its rows can be read; ``out`` cannot be written.
    """
    source, out = Path(source), Path(out)
    check_output(source, out)
    if saved.schema is None:
        raise InputError(f"{saved.path}: is no model of a table or a graph, it has no schema")
    schema = saved.schema
    done = Predicted()

    def frames() -> Iterator[pl.DataFrame]:
        for chunk in read_rows(source, schema, separator=separator):
            for row, reason in chunk.bad.items():
                done.bad += 1
                on_bad(row, reason)
            for start in range(0, len(chunk.frame), batch_rows):
                inputs = schema.transform(chunk.frame[start : start + batch_rows], str(source))
                asked = schema.tasks(chunk.frame.columns) if isinstance(schema, GraphSchema) else None
                predictions = saved.model.predict(inputs, asked)
                columns = {ROW: chunk.rows[start : start + batch_rows]}
                for name, prediction in predictions.items():
                    columns |= saved.model.tasks[name].table(prediction)
                done.rows += len(columns[ROW])
                yield pl.DataFrame(columns)

    write_frames(frames(), source, out, done)
    return done


def check_output(source: Path, out: Path) -> None:
    """Raise `InputError` unless predictions of the rows of ``source`` can be written to ``out``."""
    if out.suffix not in SINKS:
        raise InputError(f"{out}: unknown type of file, expected one that ends in {', '.join(SINKS)}")
    if out.exists() and source.exists() and out.samefile(source):
        raise InputError(f"{out}: is the input itself, expected another file to write")


def write_frames(frames: Iterator[pl.DataFrame], source: Path, out: Path, done: Predicted) -> None:
    """Write frames of one schema to ``out``, beside it first; each is made when the one before it is on its way.

    Raises `InputError` when there is none, since no row of ``source`` can be read, or ``out`` cannot be written.
    """
    first = next(frames, None)
    if first is None:
        raise InputError(f"{source}: none of its {done.bad} rows can be read, expected some")
    frame = register_io_source(lambda *_: chain([first], frames), schema=first.schema)
    with replacing(out) as temporary:
        try:
            SINKS[out.suffix](frame, temporary)
        except pl.exceptions.PolarsError as error:
            raise InputError(f"{out}: cannot be written ({error})") from error


def read_examples(saved: Saved, source: Path | str, *, separator: str | None = None) -> Examples:
    """The rows of a table, transformed by the model's own schema, with the labels of those of its tasks that are there.

    Raises `InputError` when a row cannot be read (a judgement on part of the rows would mislead), when no column is a
    task's, or when a label is none of the task's.
    """
    schema = table_schema(saved)
    # As at training: a column of categories is text even where these rows' values all look like numbers.
    text = [column for column, kind in schema.kinds.items() if kind in ("categorical", "text", "boolean")]
    frame = read_table(source, text=text, separator=separator)
    targets = {
        name: labels(frame[name], task, str(source)) for name, task in saved.model.tasks.items() if name in frame.columns
    }
    if not targets:
        raise InputError(f"{source}: has no target column, expected at least one of {', '.join(saved.model.tasks)}")
    return Examples(schema.transform(frame, str(source)), targets)


def on_graph(saved: Saved, path: Path | str) -> Saved:
    """The same model for questions about the graph at ``path``, of which all edges are seen; ``saved`` knows it too then.

    The graph has the features of the model's own, by name where they have one, and any nodes.

    Raises `InputError` when it cannot be read or has other features, when ``saved`` is no model of a graph, or one that
    learned a vector for each node.
    """
    schema = graph_schema(saved)
    graph = load_other(path, schema)
    _look_at(saved, graph, adjacency(graph.edges, graph.nodes))
    return replace(saved, schema=GraphSchema.of(graph, schema.levels))


def graph_examples(saved: Saved, path: Path | str) -> Examples:
    """The labelled rows of a graph to judge a model of a graph by.

    Of the model's own graph, known by its nodes, they are the test part. Of another they are what
    `polytask.data.graph.ask_about` asks, and the model sees that graph from then on, without the edges asked about. Raises
    `InputError` as `on_graph`, and where there are no labels or such as the model does not know.
    """
    schema, trained = graph_schema(saved), saved.about["data"]
    graph = load_other(path, schema)
    if GraphSchema.of(graph, schema.levels).nodes == schema.nodes:
        return load_graph_tasks(path, trained["tasks"], seed=trained["seed"]).test
    seen, examples = ask_about(graph, list(saved.model.tasks.values()), schema, seed=trained["seed"])
    _look_at(saved, graph, seen)
    return examples


def _look_at(saved: Saved, graph: GraphData, seen: CSR) -> None:
    encoder = saved.model.encoder
    assert isinstance(encoder, GraphEncoder)
    try:
        encoder.look_at(seen, graph.features, graph.graph_of, graph.graphs)
    except InputError as error:
        raise InputError(f"{graph.name}: {error}") from error


def graph_schema(saved: Saved) -> GraphSchema:
    """The model's schema; `InputError` when it is no model of a graph."""
    if not isinstance(saved.schema, GraphSchema):
        raise InputError(f"{saved.path}: is no model of a graph, expected one that fit --graph made")
    return saved.schema


def table_schema(saved: Saved) -> Schema:
    """The model's schema; `InputError` when it is no model of a table."""
    if saved.schema is None or isinstance(saved.schema, GraphSchema):
        raise InputError(f"{saved.path}: is no model of a table, it has no schema of one")
    return saved.schema
