"""A graph and what to predict of it as a data set: rows about nodes, links and graphs for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.data.examples import PARTS, DataSet, Examples
from polytask.data.graph.graph import GraphData
from polytask.data.graph.links import Unlinked, pairs_without_edge
from polytask.data.graph.load import graph_tables, is_ogb, load_graph
from polytask.data.graph.nodes import split_in_order
from polytask.data.graph.schema import GraphSchema
from polytask.data.graph.targets import EXISTS, LEVELS, GraphTarget
from polytask.data.stream import generator
from polytask.data.table import check_classes, describe
from polytask.errors import InputError
from polytask.files import sha256
from polytask.nn.graph import GraphEncoder, adjacency, joined, questions
from polytask.task import MISSING, Task, check_unique

SHARES = {"node": (0.2, 0.2), "link": (0.1, 0.2), "graph": (0.1, 0.1)}
"""Of what has a label: the shares for validation and for test."""

KNOWN_AS = {"val": "validation", "valid": "validation"}
"""Other names of sets of nodes."""

STEPS = 600
"""Steps that a small graph is trained for, by default."""


def load_graph_tasks(path: Path | str, tasks: Sequence[str], *, seed: int = 0, **network: Any) -> DataSet:
    """The graph at ``path`` (see `load_graph`) and what to predict of it: see `graph_data_set`.

    Of tables, the columns that are tasks are labels and no features. Of other files the labels are those that they have:
    ``class`` in ``.npz`` and ogb-style files, ``y`` in those of torch_geometric.
    """
    path = Path(path)
    targets = [GraphTarget.parse(task) for task in tasks]
    columns = {level: [t.column for t in targets if t.level == level and t.text != f"link:{EXISTS}"] for level in LEVELS}
    tables = path.is_dir() and not is_ogb(path)
    settings = {"labels": columns["node"], "edge_labels": columns["link"], "graph_labels": columns["graph"]}
    graph = load_graph(path, **(settings if tables else {}))
    files = graph_tables(path).values() if tables else sorted(path.rglob("*.gz")) if path.is_dir() else [path]
    provenance = {"source": str(path), "sha256": {file.name: sha256(file) for file in files}}
    return graph_data_set(graph, tasks, name=path.stem, provenance=provenance, seed=seed, **network)


def graph_data_set(
    graph: GraphData,
    tasks: Sequence[str],
    *,
    name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
    **network: Any,
) -> DataSet:
    """A graph and its tasks, split, with a `GraphEncoder` on the edges that training may see.

    Nodes that have a label are split at random (60/20/20 %), unless the graph has sets ``train``, ``validation`` and
    ``test``; edges (70/10/20 %) where a task is of links; graphs (80/10/10 %). Held-out edges are in no pass of the network.
    Where links are to be told from pairs that are not linked, there are as many of those in each part. For training they
    are new in each epoch, for validation and test drawn once, of pairs that are linked nowhere in the whole graph.

    Args:
        graph: the graph; a direction of its edges is not looked at.
        tasks: each ``LEVEL:COLUMN`` or ``LEVEL:COLUMN:KIND``: a label of nodes, of links or of graphs; ``link:exists`` is
            whether two nodes are linked. Kinds (binary, classification, ordinal, regression) are inferred as for tables.
        name: of the data set.
        provenance: what is known of the files.
        seed: of the split and of the pairs.
        network: width, depth, dropout and fanout of `GraphEncoder`.

    Raises:
        InputError: no task, an unknown label, a part that would be empty, a class that training never sees.
    """
    if not tasks:
        raise InputError(f"{graph.name}: no task was given, expected at least one, such as node:COLUMN or link:{EXISTS}")
    targets = [GraphTarget.parse(task) for task in tasks]
    labelled = {target.column: target.labels(graph) for target in targets}
    check_unique([Task.binary(target.column) for target in targets])
    key = generator(seed, 0)
    rows: dict[str, list[tuple[str, Tensor, dict[str, Tensor]]]] = {part: [] for part in PARTS}
    edges = graph.edges
    unlinked: slice | None = None
    for level in LEVELS:
        chosen = {t.column: labelled[t.column] for t in targets if t.level == level}
        if not chosen:
            continue
        parts = _split(graph, level, chosen, key)
        for part, index in parts.items():
            ends = edges[index] if level == "link" else index
            rows[part].append((level, ends, {column: values[index] for column, (_, values) in chosen.items()}))
        if level == "link":
            edges = edges[parts["train"]]
            if EXISTS in chosen:
                before = sum(len(ends) for _, ends, _ in rows["train"])
                unlinked = slice(before, before + len(parts["train"]))
                pairs = pairs_without_edge(graph, sum(map(len, parts.values())), key)
                sizes = [len(index) for index in parts.values()]
                for part, drawn in zip(parts, torch.split(pairs, sizes), strict=True):
                    rows[part].append((level, drawn, {EXISTS: torch.zeros(len(drawn))}))
    examples = {
        part: level_rows(found, {column: values for column, (_, values) in labelled.items()}) for part, found in rows.items()
    }
    seen = adjacency(edges, graph.nodes)
    if unlinked is not None:
        examples["train"] = replace(examples["train"], redraw=Unlinked(seen, unlinked))
    kinds = [labelled[target.column][0] for target in targets]
    warnings = check_classes(kinds, {part: examples[part].targets for part in PARTS}, graph.name)
    levels = {target.column: target.level for target in targets}
    of = graph.graph_of if "graph" in levels.values() else None
    return DataSet(
        name=name or Path(graph.name).stem,
        tasks=kinds,
        **examples,
        encoder=partial(GraphEncoder, seen, graph.features, of, graph.graphs, **network),
        settings=_settings(len(examples["train"]), graph.nodes),
        provenance={
            **(provenance or {}),
            "tasks": [target.text for target in targets],
            "seed": seed,
            "rows": {part: len(examples[part]) for part in PARTS},
            "report": [_described(graph, edges), *(describe(t, examples["train"].targets[t.name]) for t in kinds)],
            "warnings": warnings,
        },
        schema=GraphSchema.of(graph, levels),
    )


def _split(
    graph: GraphData, level: str, chosen: Mapping[str, tuple[Task, Tensor]], key: torch.Generator
) -> dict[str, Tensor]:
    """The numbers of nodes, edges or graphs in each part: of those that have a label."""
    present = torch.stack([task.present(values) for task, values in chosen.values()]).any(0)
    if level == "link":
        present &= graph.edges[:, 0] != graph.edges[:, 1]
    given = {KNOWN_AS.get(name, name): nodes for name, nodes in graph.splits.items()}
    if level == "node" and set(PARTS) <= set(given):
        parts = {part: given[part][present[given[part]]] for part in PARTS}
        times = torch.zeros(graph.nodes, dtype=torch.int64)
        for part, nodes in parts.items():
            if len(nodes) == 0:
                raise InputError(f"{graph.name}: set {part!r} has no node with a label, expected some")
            times[nodes] += 1
        if bool((times > 1).any()):
            twice = int((times > 1).nonzero()[0])
            raise InputError(f"{graph.name}: node {twice} is in two of the sets {', '.join(PARTS)}, expected one")
        return parts
    index = present.nonzero()[:, 0]
    return split_in_order(index, *SHARES[level], key, f"{graph.name}: {len(index)} {level}s with a label")


def level_rows(found: Sequence[tuple[str, Tensor, dict[str, Tensor]]], whole: Mapping[str, Tensor]) -> Examples:
    """Rows of several levels as examples, one after another; a label is missing in the rows of other levels.

    Args:
        found: of each level its name, nodes ``(N,)``, graphs ``(N,)`` or links ``(N, 2)``, and labels ``(N,)`` by task.
        whole: all labels by task, whose types are kept.
    """
    inputs = joined([questions(LEVELS[level], ends) for level, ends, _ in found])
    targets = {}
    for column, values in whole.items():
        missing = float("nan") if values.is_floating_point() else MISSING
        targets[column] = torch.cat([known.get(column, values.new_full((len(ends),), missing)) for _, ends, known in found])
    return Examples(inputs, targets)


def _described(graph: GraphData, edges: Tensor) -> str:
    features = "no features, so a vector is learned for each node"
    if graph.features is not None:
        features = f"{graph.features.shape[1]:,} features of each node"
    many = f", {graph.graphs:,} graphs" if graph.graph_of is not None else ""
    return f"graph: {graph.nodes:,} nodes, {len(graph.edges):,} edges ({len(edges):,} seen in training){many}, {features}"


def _settings(rows: int, nodes: int) -> dict[str, Any]:
    size = min(rows, 512)
    return {
        "batch_size": size,
        "lr": 5e-3 if nodes <= 20_000 else 2e-3,
        "weight_decay": 5e-4,
        "clip": 1.0,
        "epochs": min(200, max(3, round(STEPS / (rows // size)))),
        "patience": 8,
    }
