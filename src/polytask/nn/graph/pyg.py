"""To and from torch_geometric, which is imported when one of these is called."""

from __future__ import annotations

from typing import Any

import torch

from polytask.errors import InputError, optional
from polytask.nn.graph.csr import CSR


def from_pyg(data: Any) -> CSR:
    """The adjacency of a ``torch_geometric.data.Data``: row ``i`` lists the sources of the edges into ``i``, as PyG sums.

    One-dimensional ``edge_weight``, or ``edge_attr``, becomes the values. Edges are as they stand, not made undirected.
    """
    if getattr(data, "edge_index", None) is None:
        raise InputError(f"a {type(data).__name__} without edge_index, expected a torch_geometric Data with edges")
    weight = data.edge_weight if "edge_weight" in data else data.edge_attr
    values = weight if weight is not None and weight.ndim == 1 else None
    source, target = data.edge_index
    nodes = int(data.num_nodes)
    return CSR.from_entries(target, source, (nodes, nodes), values)


def to_pyg(graph: CSR, **attributes: Any) -> Any:
    """A ``torch_geometric.data.Data`` of the graph, its values as ``edge_weight``, and ``attributes`` such as ``x``, ``y``.

    Raises `MissingExtra` without torch_geometric.
    """
    data = optional("torch_geometric.data", "graph")
    if graph.values is not None:
        attributes = {"edge_weight": graph.values, **attributes}
    edge_index = torch.stack([graph.columns, graph.rows])
    return data.Data(edge_index=edge_index, num_nodes=graph.height, **attributes)
