"""A graph with what is known of its nodes and edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polytask.errors import InputError, optional
from polytask.nn.graph import CSR, adjacency


@dataclass(frozen=True, eq=False)
class GraphData:
    """A graph in memory: ``N`` nodes, numbered from 0, and ``E`` edges.

    Args:
        name: what to call it in errors: its file.
        nodes: ``N``.
        edges: ``(E, 2)`` int64. Of an undirected graph each edge once, in one direction or the other.
        features: ``(N, F)`` float, dense or sparse; ``None`` where nodes have none.
        labels: for each task of nodes ``(N,)``: int64 classes with -1 where one is missing, or floats with NaN.
        classes: for each task of classes their names, by number.
        edge_types: ``(E,)`` int64, as relations of a knowledge graph; ``None`` where all are of one type.
        splits: named sets of nodes, as ``"train"``.
        ids: what the file calls the nodes; ``None`` where their numbers do.
        directed: whether an edge leads from its first node to its second alone.
        edge_labels: for each task of edges ``(E,)``, as ``labels``.
        graph_of: ``(N,)`` int64: where several graphs are one here, the number of each node's own.
        graph_labels: for each task of whole graphs ``(G,)``, as ``labels``.
        graph_ids: what the file calls the graphs; ``None`` where their numbers do.
        feature_names: what the file calls the features; ``None`` where it does not.

    Raises:
        InputError: tensors that do not fit one another, an edge to an unknown node, or a set with one; a feature that is not
            finite; a class below -1.
    """

    name: str
    nodes: int
    edges: Tensor
    features: Tensor | CSR | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    edge_types: Tensor | None = None
    splits: Mapping[str, Tensor] = field(default_factory=dict)
    ids: Sequence[Any] | None = None
    directed: bool = False
    edge_labels: Mapping[str, Tensor] = field(default_factory=dict)
    graph_of: Tensor | None = None
    graph_labels: Mapping[str, Tensor] = field(default_factory=dict)
    graph_ids: Sequence[Any] | None = None
    feature_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.edges.ndim != 2 or self.edges.shape[1] != 2 or self.edges.is_floating_point():
            raise InputError(
                f"{self.name}: edges of shape {tuple(self.edges.shape)}, {self.edges.dtype}, expected (E, 2) integers"
            )
        wrong = ((self.edges < 0) | (self.edges >= self.nodes)).any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            found = self.edges[row].tolist()
            raise InputError(f"{self.name}: edge {row + 1}: nodes {found}, expected numbers from 0 to {self.nodes - 1}")
        lengths = {f"label {name!r}": len(label) for name, label in self.labels.items()}
        if self.features is not None:
            if len(self.features.shape) != 2:
                raise InputError(f"{self.name}: features of shape {tuple(self.features.shape)}, expected (N, F)")
            lengths["features"] = self.features.shape[0]
        if self.graph_of is not None:
            lengths["graph_of"] = len(self.graph_of)
        for what, length in lengths.items():
            if length != self.nodes:
                raise InputError(f"{self.name}: {what} of {length} nodes, expected {self.nodes}")
        of_edges = {f"label {name!r}": label for name, label in self.edge_labels.items()}
        for what, values in {"types": self.edge_types, **of_edges}.items():
            if values is not None and len(values) != len(self.edges):
                raise InputError(f"{self.name}: {what} of {len(values)} edges, expected {len(self.edges)}")
        for name, nodes in self.splits.items():
            wrong = (nodes < 0) | (nodes >= self.nodes)
            if bool(wrong.any()):
                one = int(nodes[wrong][0])
                raise InputError(f"{self.name}: set {name!r}: node {one}, expected numbers from 0 to {self.nodes - 1}")
        for name, values in {**self.labels, **self.edge_labels, **self.graph_labels}.items():
            wrong = values.isinf() if values.is_floating_point() else values < -1
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                expected = "a finite number" if values.is_floating_point() else "0 or above, or -1 where it is missing"
                raise InputError(f"{self.name}: label {name!r}: row {row + 1}: {values[row].item()}, expected {expected}")
        self._check_features()
        if self.graph_labels and self.graph_of is None:
            raise InputError(f"{self.name}: labels of graphs, expected graph_of too, which says whose nodes are whose")

    def _check_features(self) -> None:
        if isinstance(self.features, CSR):
            wrong = None if self.features.values is None else ~self.features.values.isfinite()
            if wrong is not None and bool(wrong.any()):
                row = int(self.features.rows[wrong][0])
                raise InputError(f"{self.name}: features: row {row + 1}: not a number, or infinite, expected finite numbers")
        elif self.features is not None and not bool(self.features.isfinite().all()):
            row, column = (~self.features.isfinite()).nonzero()[0].tolist()
            name = repr(self.feature_names[column]) if self.feature_names else column + 1
            found = self.features[row, column].item()
            raise InputError(f"{self.name}: features: row {row + 1}, column {name}: {found}, expected a finite number")

    @property
    def graphs(self) -> int:
        """How many graphs are one here; 0 where ``graph_of`` is ``None``."""
        return 0 if self.graph_of is None else max([int(self.graph_of.max()) + 1, *map(len, self.graph_labels.values())])

    def adjacency(self) -> CSR:
        """The adjacency ``(N, N)``: symmetric, or of a directed graph the sources of the edges into each node."""
        if not self.directed:
            return adjacency(self.edges, self.nodes)
        return CSR.from_entries(self.edges[:, 1], self.edges[:, 0], (self.nodes, self.nodes))

    @classmethod
    def from_pyg(cls, data: Any, name: str = "graph") -> GraphData:
        """What a ``torch_geometric.data.Data`` holds: ``x``, ``edge_index``, ``y`` as a label, and ``*_mask`` as splits.

        Edges in both directions make it undirected, with each edge once.
        """
        edges = data.edge_index.t().contiguous()
        directed = bool(data.is_directed())
        types = getattr(data, "edge_type", None)
        if not directed:
            once = edges[:, 0] <= edges[:, 1]
            edges, types = edges[once], None if types is None else types[once]
        labels = {"y": data.y.squeeze(-1) if data.y.ndim == 2 else data.y} if data.y is not None else {}
        masks = {key: value for key, value in data.to_dict().items() if key.endswith("_mask") and value.ndim == 1}
        for key, mask in masks.items():
            if len(mask) != data.num_nodes:
                raise InputError(f"{name}: {key} of {len(mask)} nodes, expected {data.num_nodes}")
        splits = {key.removesuffix("_mask"): mask.nonzero()[:, 0] for key, mask in masks.items()}
        return cls(name, int(data.num_nodes), edges, data.x, labels, {}, types, splits, None, directed)

    def to_pyg(self) -> Any:
        """A ``torch_geometric.data.Data``: the reverse of `from_pyg`; sparse features become dense, other labels keep names.

        Raises `MissingExtra` without torch_geometric.
        """
        data = optional("torch_geometric.data", "graph")
        edges, types = self.edges, self.edge_types
        if not self.directed:
            proper = edges[:, 0] != edges[:, 1]
            edges = torch.cat([edges, edges[proper].flip(1)])
            types = None if types is None else torch.cat([types, types[proper]])
        given: dict[str, Any] = dict(self.labels)
        if isinstance(self.features, CSR):
            given["x"] = self.features @ torch.eye(self.features.width)
        elif self.features is not None:
            given["x"] = self.features
        if types is not None:
            given["edge_type"] = types
        for split, nodes in self.splits.items():
            mask = torch.zeros(self.nodes, dtype=torch.bool)
            mask[nodes] = True
            given[f"{split}_mask"] = mask
        return data.Data(edge_index=edges.t().contiguous(), num_nodes=self.nodes, **given)
