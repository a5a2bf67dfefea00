"""Normalised adjacencies: what graph convolutions average with."""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.nn.graph.csr import CSR


def with_loops(graph: CSR) -> CSR:
    """The graph with exactly one self loop of value 1 at each node, whatever loops it had."""
    proper = graph.keep(graph.rows != graph.columns)
    nodes = torch.arange(graph.height, device=graph.columns.device)
    values = None if proper.values is None else torch.cat([proper.values, proper.values.new_ones(len(nodes))])
    rows, columns = torch.cat([proper.rows, nodes]), torch.cat([proper.columns, nodes])
    return CSR.from_entries(rows, columns, graph.shape, values)


def symmetric(graph: CSR, loops: bool = True) -> CSR:
    """``D^-1/2 (A + I) D^-1/2`` with ``D = 1 + degree``; without ``loops`` neither is added. Isolated nodes have zero rows.

    Kipf and Welling, *Semi-supervised classification with graph convolutional networks*, ICLR 2017.
    """
    graph = with_loops(graph) if loops else graph
    scale = _inverse(graph.sums().sqrt())
    weights = scale[graph.rows] * scale[graph.columns]
    return graph.with_values(weights if graph.values is None else weights * graph.values)


def random_walk(graph: CSR) -> CSR:
    """``D^-1 A``, whose rows sum to 1: the mean over neighbours. Isolated nodes have zero rows."""
    weights = _inverse(graph.sums())[graph.rows]
    return graph.with_values(weights if graph.values is None else weights * graph.values)


def propagate(graph: CSR, x: Tensor, sums: Tensor | None = None) -> Tensor:
    """``D^-1/2 (A + I) D^-1/2 x`` for ``x`` of shape ``(nodes, F)``: `symmetric`, without making that matrix.

    Self loops that the graph has count besides the one that is added. ``D`` is 1 and ``sums`` ``(nodes,)``, by default the
    graph's own: of a part of a graph, give the whole graph's.
    """
    scale = (1 + (graph.sums() if sums is None else sums)).rsqrt().to(x.dtype)[:, None]
    scaled = scale * x
    return scale * (graph @ scaled + scaled)


def _inverse(sums: Tensor) -> Tensor:
    return torch.where(sums > 0, 1 / sums, 0)
