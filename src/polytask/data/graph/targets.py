"""What to predict of a graph: ``LEVEL:COLUMN`` or ``LEVEL:COLUMN:KIND`` to a task, with its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polytask.data.graph.graph import GraphData
from polytask.data.table import FEW, TARGET_KINDS
from polytask.errors import InputError, suggest
from polytask.nn.graph import GRAPH, LINK, NODE
from polytask.task import MISSING, Binary, Classification, Ordinal, Regression, Task

LEVELS = {"node": NODE, "link": LINK, "graph": GRAPH}

EXISTS = "exists"
"""The column of links that no table has: whether two nodes are linked."""


class GraphTarget(NamedTuple):
    """What to predict, of what, and as what kind of task; ``None`` infers the kind."""

    level: str
    column: str
    kind: str | None

    @classmethod
    def parse(cls, text: str) -> GraphTarget:
        """``LEVEL:COLUMN`` or ``LEVEL:COLUMN:KIND``, as in ``node:club``, ``link:exists``, ``graph:weight:regression``."""
        level, colon, rest = text.partition(":")
        column, _, kind = rest.rpartition(":")
        if not column or kind not in TARGET_KINDS:
            column, kind = rest, ""
        if not colon or not column:
            raise InputError(f"task {text!r}, expected LEVEL:COLUMN or LEVEL:COLUMN:KIND, such as node:club or link:exists")
        if level not in LEVELS:
            raise InputError(f"task {text!r}: unknown level {level!r}: {suggest(level, LEVELS)}")
        return cls(level, column, kind or None)

    @property
    def text(self) -> str:
        """What `parse` reads."""
        return ":".join(part for part in self if part)

    def labels(self, graph: GraphData) -> tuple[Task, Tensor]:
        """The task, and the labels of the graph's nodes, edges or graphs, missing ones as the task's kind has them.

        Of whether two nodes are linked: 1 for each edge.

        Raises:
            InputError: no such labels, a single class, or a kind that they cannot be.
        """
        if self.level == "link" and self.column == EXISTS and EXISTS not in graph.edge_labels:
            if self.kind not in (None, "binary"):
                raise InputError(f"{graph.name}: task {self.text!r}: kind {self.kind!r}, expected binary")
            return Task.binary(EXISTS, classes=["no", "yes"]), torch.ones(len(graph.edges))
        known = labels_at(graph, self.level)
        if self.column not in known:
            others = suggest(self.column, known) if known else "there is none"
            raise InputError(f"{graph.name}: no label {self.column!r} of a {self.level}: {others}")
        return _task(self, known[self.column], graph)


def labels_at(graph: GraphData, level: str) -> Mapping[str, Tensor]:
    """The labels that a graph has of its nodes, links or graphs, by column."""
    if level == "link":
        types = {} if graph.edge_types is None else {"type": graph.edge_types}
        return {**types, **graph.edge_labels}
    return graph.labels if level == "node" else graph.graph_labels


def _task(target: GraphTarget, labels: Tensor, graph: GraphData) -> tuple[Task, Tensor]:
    name, kind = target.column, target.kind
    where = f"{graph.name}: task {target.text!r}"
    if labels.is_floating_point():
        if kind not in (None, "regression"):
            raise InputError(f"{where}: numbers with fractions, expected text or whole numbers for {kind}")
        return Task.regression(name, scale="standard"), labels.float()
    names = list(graph.classes.get(name, ()))
    if kind == "regression" or (kind is None and len(names) > FEW and None not in map(_number, names)):
        return Task.regression(name, scale="standard"), _numbers(labels, names, where)
    names = names or [str(k) for k in range(int(labels.max()) + 1)]
    if len(names) < 2:
        raise InputError(f"{where}: every label is {names[0] if names else 'missing'!r}, expected at least two classes")
    if kind == "binary" and len(names) != 2:
        raise InputError(f"{where}: {len(names)} classes ({', '.join(names[:5])}), expected 2 for binary")
    if len(names) == 2 and kind in (None, "binary"):
        return Task.binary(name, classes=names), torch.where(labels < 0, torch.nan, labels.float())
    codes = torch.where(labels < 0, MISSING, labels)
    return (Task.ordinal if kind == "ordinal" else Task.classification)(name, classes=names), codes


def labels_as(task: Task, level: str, graph: GraphData) -> Tensor:
    """The labels of another graph for a task that is known: classes by their names, missing ones as the kind has them.

    Of whether two nodes are linked: 1 for each edge.

    Raises:
        InputError: a class that the task has not, or numbers in place of classes, or the reverse.
    """
    if level == "link" and task.name == EXISTS and EXISTS not in graph.edge_labels:
        return torch.ones(len(graph.edges))
    labels = labels_at(graph, level)[task.name]
    where = f"{graph.name}: label {task.name!r} of a {level}"
    names = list(graph.classes.get(task.name, ()))
    if isinstance(task, Regression):
        return labels.float() if labels.is_floating_point() else _numbers(labels, names, where)
    assert isinstance(task, Binary | Classification | Ordinal)
    if labels.is_floating_point():
        raise InputError(f"{where}: numbers with fractions, expected its classes: {', '.join(task.classes)}")
    names = names or [str(k) for k in range(int(labels.max()) + 1)]
    for one in names:
        if one not in task.classes:
            raise InputError(f"{where}: {one!r} is none of its classes: {suggest(one, task.classes)}")
    codes = torch.tensor([*(list(task.classes).index(one) for one in names), MISSING])[labels]
    return torch.where(codes == MISSING, torch.nan, codes.float()) if isinstance(task, Binary) else codes


def _numbers(labels: Tensor, names: Sequence[str], where: str) -> Tensor:
    """Classes whose names are numbers as these."""
    numbers = [_number(text) for text in names]
    if not names or None in numbers:
        raise InputError(f"{where}: names of classes, expected numbers for a regression")
    return torch.tensor([*(value for value in numbers if value is not None), float("nan")])[labels]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
