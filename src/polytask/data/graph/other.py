"""Another graph for a model: read as the model's own was, and its labels as questions to judge the model by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from polytask.data.examples import Examples
from polytask.data.graph.data_set import SHARES, level_rows
from polytask.data.graph.graph import GraphData
from polytask.data.graph.links import pairs_without_edge
from polytask.data.graph.load import graph_tables, is_ogb, load_graph
from polytask.data.graph.nodes import split_in_order
from polytask.data.graph.schema import GraphSchema
from polytask.data.graph.targets import EXISTS, LEVELS, labels_as, labels_at
from polytask.data.stream import generator
from polytask.data.table import read_table
from polytask.errors import InputError
from polytask.nn.graph import CSR, adjacency
from polytask.task import Task


def load_other(path: Path | str, schema: GraphSchema) -> GraphData:
    """The graph at ``path`` (see `load_graph`) with the features of the model whose schema this is.

    Of tables, the columns that the model's features are called by are features, and the columns of its tasks, those that
    are there, labels; others are not looked at.

    Raises:
        InputError: as `load_graph`; also a table without a column of the features.
    """
    path = Path(path)
    if not path.is_dir() or is_ogb(path):
        return load_graph(path)
    tables = {"node": "nodes", "link": "edges", "graph": "graphs"}
    files = graph_tables(path)
    there = {level: read_table(files[name], row_limit=1).columns for level, name in tables.items() if name in files}
    labels = {
        level: [task for task, of in schema.levels.items() if of == level and task in there.get(level, ())]
        for level in LEVELS
    }
    return load_graph(
        path,
        features=schema.features,
        labels=labels["node"],
        edge_labels=labels["link"],
        graph_labels=labels["graph"],
    )


def ask_about(graph: GraphData, tasks: Sequence[Task], schema: GraphSchema, *, seed: int = 0) -> tuple[CSR, Examples]:
    """What a model may see of a graph that it was not trained on, and questions about it with their labels.

    They are about all nodes and all graphs that have a label. Where a task is of links, 30 % of the edges are asked about,
    as many as are held out when a model is fitted, and are not in what may be seen; for ``exists`` there are as many pairs
    that are linked nowhere in the graph.

    Args:
        graph: the graph.
        tasks: the model's; those without labels here are left out.
        schema: of the model.
        seed: of the edges that are asked about, and of the pairs.

    Raises:
        InputError: a label that is none of a task's, no labels at all, too few edges.
    """
    known = {
        level: {
            task.name: (task, labels_as(task, level, graph))
            for task in tasks
            if schema.levels[task.name] == level and (task.name in labels_at(graph, level) or task.name == EXISTS)
        }
        for level in LEVELS
    }
    rows, seen = [], graph.edges
    for level, chosen in known.items():
        if not chosen:
            continue
        index = torch.stack([task.present(values) for task, values in chosen.values()]).any(0).nonzero()[:, 0]
        if level == "link":
            index = index[graph.edges[index, 0] != graph.edges[index, 1]]
            key = generator(seed, 0)
            parts = split_in_order(index, *SHARES[level], key, f"{graph.name}: {len(index)} links with a label")
            seen, index = graph.edges[parts["train"]], torch.cat([parts["validation"], parts["test"]])
            if EXISTS in chosen:
                pairs = pairs_without_edge(graph, len(index), key)
                rows.append((level, pairs, {EXISTS: torch.zeros(len(pairs))}))
        ends = graph.edges[index] if level == "link" else index
        rows.append((level, ends, {name: values[index] for name, (_, values) in chosen.items()}))
    if sum(len(ends) for _, ends, _ in rows) == 0:
        raise InputError(f"{graph.name}: no labels, expected some of {', '.join(task.name for task in tasks)}")
    values = {name: values for chosen in known.values() for name, (_, values) in chosen.items()}
    return adjacency(seen, graph.nodes), level_rows(rows, values)
