"""How rows of a table become questions about a graph: of nodes by their ids, of links by two, of graphs by theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
import torch
from torch import Tensor

from polytask.data.graph.graph import GraphData
from polytask.data.graph.targets import LEVELS
from polytask.errors import InputError, quoted
from polytask.nn.graph import questions

COLUMNS = {"link": ("source", "target"), "node": ("id",), "graph": ("graph",)}
"""The columns that ask about each level; a table's level is the first whose columns it has."""


@dataclass(frozen=True, eq=False)
class GraphSchema:
    """The names of a graph's nodes and graphs, and what is predicted of which.

    Attributes:
        levels: of each task: ``node``, ``link`` or ``graph``.
        nodes, graphs: their ids as text, in order of their numbers.
        features: the columns of the nodes' features; ``None`` where they have no names.
    """

    levels: Mapping[str, str]
    nodes: Sequence[str]
    graphs: Sequence[str] = ()
    features: Sequence[str] | None = None

    @classmethod
    def of(cls, graph: GraphData, levels: Mapping[str, str]) -> GraphSchema:
        """The names in a graph, of whose nodes, links or graphs these tasks are."""
        graphs = (graph.graph_ids or range(graph.graphs)) if "graph" in levels.values() else ()
        nodes = graph.ids or range(graph.nodes)
        return cls(levels, [str(one) for one in nodes], [str(one) for one in graphs], graph.feature_names)

    def level(self, columns: Sequence[str], name: str = "table") -> str:
        """What a table with these columns asks about.

        Raises `InputError` where that is nothing, or nothing of which a task is.
        """
        for level, wanted in COLUMNS.items():
            if set(wanted) <= set(columns):
                if level not in self.levels.values():
                    of = sorted(set(self.levels.values()))
                    raise InputError(
                        f"{name}: asks about a {level} in each row, and the model's tasks are of {' and '.join(of)}"
                    )
                return level
        raise InputError(f"{name}: columns {', '.join(columns)}, expected id, or source and target, or graph")

    def check_columns(self, columns: Sequence[str], name: str = "table") -> None:
        """Raises `InputError` as `level` does."""
        self.level(columns, name)

    def tasks(self, columns: Sequence[str]) -> list[str]:
        """The tasks that a table with these columns asks for."""
        level = self.level(columns)
        return [task for task, of in self.levels.items() if of == level]

    def misfits(self, frame: pl.DataFrame) -> dict[int, str]:
        """For each row that cannot be asked, by its place in the frame, why."""
        found = {}
        level = self.level(frame.columns)
        for column in COLUMNS[level]:
            for row in self._places(frame[column], level).is_null().arg_true():
                value = frame[column][row]
                what = "missing" if value is None else f"unknown {_of(level)} {quoted(str(value))}"
                found[row] = f"column {column!r}: {what}, expected the id of a {_of(level)} of the model's graph"
        return found

    def transform(self, frame: pl.DataFrame, name: str = "table") -> dict[str, Tensor]:
        """The rows as inputs of `polytask.nn.graph.GraphEncoder`; `InputError` for a row that cannot be asked."""
        level = self.level(frame.columns, name)
        ends = [self._places(frame[column], level) for column in COLUMNS[level]]
        if any(end.null_count() for end in ends):
            for row, reason in sorted(self.misfits(frame).items()):
                raise InputError(f"{name}: row {row + 1}, {reason}")
        places = torch.stack([torch.from_numpy(end.to_numpy().copy()) for end in ends], 1)
        return questions(LEVELS[level], places if level == "link" else places[:, 0])

    def tensors(self) -> dict[str, Tensor]:
        """None: all is in `to_json`."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; `from_json` reads them."""
        features = None if self.features is None else list(self.features)
        names = {"nodes": list(self.nodes), "graphs": list(self.graphs), "features": features}
        return {"kind": "graph", "levels": dict(self.levels), **names}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GraphSchema:
        return cls(values["levels"], values["nodes"], values["graphs"], values.get("features"))

    @cached_property
    def _tables(self) -> dict[str, pl.DataFrame]:
        ids = {"node": self.nodes, "graph": self.graphs}
        return {
            what: pl.DataFrame({"id": pl.Series(names, dtype=pl.String)}).with_row_index("place")
            for what, names in ids.items()
        }

    def _places(self, column: pl.Series, level: str) -> pl.Series:
        asked = pl.DataFrame({"id": column.cast(pl.String)})
        return asked.join(self._tables[_of(level)], on="id", how="left", maintain_order="left")["place"].cast(pl.Int64)


def _of(level: str) -> str:
    return "graph" if level == "graph" else "node"
