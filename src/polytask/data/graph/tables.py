"""Graphs as tables: one row for each node, one row for each edge, and one for each graph where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from polytask.data.graph.graph import GraphData
from polytask.data.table.read import read_table
from polytask.errors import InputError, quoted, suggest


def read_graph_tables(
    edges: Path | str,
    nodes: Path | str | None = None,
    graphs: Path | str | None = None,
    *,
    labels: Sequence[str] = (),
    edge_labels: Sequence[str] = (),
    graph_labels: Sequence[str] = (),
    features: Sequence[str] | None = None,
    id: str = "id",
    type: str = "type",
    graph: str = "graph",
    source: str = "source",
    target: str = "target",
    directed: bool = False,
    loops: bool = False,
) -> GraphData:
    """A graph from tables in any format that `polytask.data.table.read_table` reads. Rows are numbered from 1.

    Ids may be text or integers of any size. Of an undirected graph, an edge that is given twice, in whatever directions, is
    one edge; of a directed one, or with types, which may mean a direction, it is where both rows agree in all.

    Args:
        edges: with the columns ``source`` and ``target``, and, if edges are of several types, ``type``.
        nodes: with the column ``id``; without this file the nodes are those that have an edge, in order of their ids.
        graphs: with the column ``id``, where there are several graphs; then each row of nodes says in its column ``graph``
            whose it is, and edges are between nodes of one graph.
        labels: columns of nodes to predict: floats become regression targets (missing: NaN), text and whole numbers classes
            (missing: -1).
        edge_labels, graph_labels: the same of edges and of graphs. Rows of one edge must not differ in them.
        features: columns of numbers; by default all columns of numbers besides id, type, graph and labels.
        id, type, graph, source, target: other names of these columns.
        directed: whether an edge leads from source to target alone.
        loops: allow edges from a node to itself.

    Raises:
        InputError: naming file, row and column: a missing or repeated id, an edge to an unknown node, a self loop where it
            is forbidden, a feature that is missing or no number, a type of node without features, an edge between graphs,
            two labels of one edge, no such column.
    """
    edges = Path(edges)
    edge_frame = read_table(edges)
    _check_columns(edge_frame, (source, target, *edge_labels), edges)
    given: dict[str, Tensor] = {}
    classes: dict[str, list[str]] = {}
    matrix: Tensor | None = None
    columns: Sequence[str] = ()
    graph_of: Tensor | None = None
    graph_ids, of_graphs = None, {}
    if nodes is None:
        if graphs is not None:
            raise InputError(
                f"{graphs}: a table of graphs without one of nodes, expected one that says which graph is whose"
            )
        if edge_frame[source].dtype != edge_frame[target].dtype:
            raise InputError(f"{edges}: {source!r} and {target!r} are of different types, expected ids of one kind")
        ids = pl.concat([edge_frame[source], edge_frame[target].alias(source)]).drop_nulls().unique().sort()
    else:
        nodes = Path(nodes)
        frame = read_table(nodes)
        _check_columns(frame, (id, *labels, *(features or ())), nodes)
        ids = _ids(frame[id], nodes)
        given = _labels(frame, labels, classes)
        taken = {id, type, *labels}
        if graphs is not None:
            graphs = Path(graphs)
            graph_frame = read_table(graphs)
            _check_columns(graph_frame, (id, *graph_labels), graphs)
            _check_columns(frame, (graph,), nodes)
            graph_ids = _ids(graph_frame[id], graphs)
            graph_of = _places(frame[graph], graph_ids, nodes, graphs, what="graph")
            of_graphs = _labels(graph_frame, graph_labels, classes)
            taken.add(graph)
        columns = (
            [c for c in frame.columns if c not in taken and frame[c].dtype.is_numeric()] if features is None else features
        )
        matrix = _features(frame, list(columns), type if type in frame.columns else None, nodes)
    ends = [_places(edge_frame[column], ids, edges, nodes) for column in (source, target)]
    pairs = torch.stack(ends, 1)
    loop = pairs[:, 0] == pairs[:, 1]
    if not loops and bool(loop.any()):
        row = int(loop.nonzero()[0])
        value = quoted(edge_frame[source][row])
        raise InputError(f"{edges}: row {row + 1}: an edge from {value} to itself, expected none (allow them: loops=True)")
    if graph_of is not None:
        apart = graph_of[pairs[:, 0]] != graph_of[pairs[:, 1]]
        if bool(apart.any()):
            row = int(apart.nonzero()[0])
            both = " and ".join(quoted(edge_frame[column][row]) for column in (source, target))
            raise InputError(f"{edges}: row {row + 1}: an edge between {both}, expected two nodes of one graph")
    kinds = None
    if type in edge_frame.columns:
        kinds, classes[type] = _label(edge_frame[type])
        if bool((kinds < 0).any()):
            row = int((kinds < 0).nonzero()[0])
            raise InputError(f"{edges}: row {row + 1}, column {type!r}: missing, expected a type of edge")
    pairs, kinds, place = _once(pairs, kinds, directed)
    of_edges = {
        label: _label_once(values, place, len(pairs), f"{edges}: column {label!r}")
        for label, values in _labels(edge_frame, edge_labels, classes).items()
    }
    return GraphData(
        *(str(edges), len(ids), pairs, matrix, given, classes, kinds),
        ids=ids.to_list(),
        directed=directed,
        edge_labels=of_edges,
        graph_of=graph_of,
        graph_labels=of_graphs,
        graph_ids=None if graph_ids is None else graph_ids.to_list(),
        feature_names=None if matrix is None else list(columns),
    )


def _check_columns(frame: pl.DataFrame, wanted: Sequence[str], path: Path) -> None:
    for column in wanted:
        if column not in frame.columns:
            raise InputError(f"{path}: no column {column!r}: {suggest(column, frame.columns)}")


def _ids(column: pl.Series, path: Path) -> pl.Series:
    if column.dtype.is_float():
        raise InputError(f"{path}: column {column.name!r}: {column.dtype} ids, expected text or integers, which are exact")
    if column.null_count():
        row = column.is_null().arg_true()[0]
        raise InputError(f"{path}: row {row + 1}, column {column.name!r}: missing, expected the node's id")
    repeated = ~column.is_first_distinct()
    if repeated.any():
        row = repeated.arg_true()[0]
        raise InputError(
            f"{path}: row {row + 1}, column {column.name!r}: {quoted(column[row])} repeats, expected distinct ids"
        )
    return column


def _places(column: pl.Series, ids: pl.Series, path: Path, nodes: Path | None, what: str = "node") -> Tensor:
    where = f"one of the {len(ids)} ids in {nodes}" if nodes else "an id"
    if column.dtype != ids.dtype and not (column.dtype.is_integer() and ids.dtype.is_integer()):
        raise InputError(
            f"{path}: column {column.name!r}: {column.dtype} ids, expected {ids.dtype}, as the ids are in {nodes}"
        )
    table = pl.DataFrame({"id": ids.cast(column.dtype, strict=False)}).with_row_index("place")
    found = pl.DataFrame({"id": column}).join(table, on="id", how="left", maintain_order="left")["place"]
    if found.null_count():
        row = found.is_null().arg_true()[0]
        value = "missing" if column[row] is None else f"unknown {what} {quoted(column[row])}"
        raise InputError(f"{path}: row {row + 1}, column {column.name!r}: {value}, expected {where}")
    return torch.from_numpy(found.cast(pl.Int64).to_numpy().copy())


def _labels(frame: pl.DataFrame, columns: Sequence[str], classes: dict[str, list[str]]) -> dict[str, Tensor]:
    """The labels in these columns; the names of those that are classes are added to ``classes``."""
    found = {}
    for column in columns:
        found[column], names = _label(frame[column])
        if names:
            classes[column] = names
    return found


def _label(column: pl.Series) -> tuple[Tensor, list[str]]:
    """Floats with NaN where missing; or classes with -1 where missing, and their names in order."""
    if column.dtype.is_float():
        return torch.from_numpy(column.fill_null(float("nan")).to_numpy().copy()).float(), []
    names = column.drop_nulls().unique().sort()
    codes = pl.DataFrame({"v": column}).join(
        pl.DataFrame({"v": names}).with_row_index("code"), on="v", how="left", maintain_order="left"
    )["code"]
    return torch.from_numpy(codes.cast(pl.Int64).fill_null(-1).to_numpy().copy()), [str(name) for name in names]


def _features(frame: pl.DataFrame, columns: list[str], type: str | None, path: Path) -> Tensor | None:
    if not columns:
        return None
    for column in columns:
        if not frame[column].dtype.is_numeric() and frame[column].dtype != pl.Boolean:
            raise InputError(f"{path}: column {column!r}: {frame[column].dtype}, expected numbers as features")
    missing = frame.select(pl.any_horizontal(pl.col(c).is_null() | pl.col(c).cast(pl.Float64).is_nan() for c in columns))
    flags = missing.to_series()
    if flags.any():
        row = flags.arg_true()[0]
        if type is not None:
            kind = frame[type][row]
            own = frame.filter(pl.col(type) == kind).select(columns)
            if all(own[c].null_count() == len(own) for c in columns):
                raise InputError(
                    f"{path}: row {row + 1}: nodes of type {quoted(kind)} have no features, expected some for each"
                )
        column = next(c for c in columns if frame[c][row] is None or frame[c][row] != frame[c][row])
        raise InputError(f"{path}: row {row + 1}, column {column!r}: missing, expected a number as feature")
    numbers = torch.from_numpy(frame.select(pl.col(columns).cast(pl.Float32)).to_numpy().copy())
    if bool(numbers.isinf().any()):
        row, place = numbers.isinf().nonzero()[0].tolist()
        found = frame[columns[place]][row]
        raise InputError(f"{path}: row {row + 1}, column {columns[place]!r}: {found}, expected a number that float32 holds")
    return numbers


def _once(pairs: Tensor, kinds: Tensor | None, directed: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Each edge once, with its type, in order of its nodes; and for each row which edge it is."""
    if kinds is None:
        edges, place = torch.unique(pairs if directed else pairs.sort(1).values, dim=0, return_inverse=True)
        return edges, None, place
    keyed = torch.cat([pairs, kinds[:, None]], 1)  # a type may mean a direction, which is kept
    rows, place = torch.unique(keyed, dim=0, return_inverse=True)
    return rows[:, :2].contiguous(), rows[:, 2].contiguous(), place


def _label_once(labels: Tensor, place: Tensor, edges: int, where: str) -> Tensor:
    """The labels of rows as labels of edges; `InputError` where rows of one edge differ."""
    found = labels.new_zeros(edges)
    found[place.flip(0)] = labels.flip(0)  # the first row's stays
    differs = (found[place] != labels) & ~((found[place] != found[place]) & (labels != labels))
    if bool(differs.any()):
        row = int(differs.nonzero()[0])
        raise InputError(f"{where}: row {row + 1}: another row of the same edge has another label, expected one")
    return found
