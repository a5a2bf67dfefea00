"""A graph and a network on it as an encoder: of nodes, of pairs of nodes, and of whole graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.nn.graph.augment import dropout
from polytask.nn.graph.convolution import GCNConv, linear
from polytask.nn.graph.csr import CSR, SparseBuffer
from polytask.nn.graph.sampling import sample_neighbours

NODE, LINK, GRAPH = 0, 1, 2
"""What a row asks about: its ``"level"``."""

WHOLE = 20_000
"""Nodes up to which each pass is over the whole graph."""


class GraphEncoder(nn.Module):
    """Questions about a graph -> features ``(N, width)``: the encoder of a `polytask.Model` for tasks of all three levels.

    Inputs are ``{"level": (N,), "ends": (N, 2)}``, int64: a node, ``(v, v)``; a pair of nodes, ``(u, v)``; a whole graph,
    its number twice. Features of a node are the network's; of a pair, a linear function of their sum, product and
    distance, which does not depend on the order; of a graph, one of the mean and the maximum over its nodes.

    The network: a linear layer, then ``depth`` times a graph convolution (Kipf and Welling, ICLR 2017) with layer
    normalisation, ReLU, dropout, and the layer's input added. In training, the pairs of a batch are taken out of the
    graph, so that no pair sees its own link. Graphs of up to ``WHOLE`` nodes are computed whole; of larger ones each pass
    computes what the batch sees, in training with at most ``fanout`` neighbours of a node (sums keep their expectation).

    The graph is part of the state dict.

    Args:
        graph: ``(M, M)``, symmetric.
        features: ``(M, F)``, dense, which are standardised here, or sparse, which are taken as they are; ``None`` learns a
            vector for each node, and then the model knows these nodes alone.
        graph_of: ``(M,)`` the number of the graph that each node belongs to, for questions about graphs.
        graphs: their number.
        width, depth: of the network.
        dropout: of what each layer adds, and of the entries of sparse features, such as words, of which there are many.
        fanout: neighbours that are drawn.
    """

    def __init__(
        self,
        graph: CSR,
        features: Tensor | CSR | None = None,
        graph_of: Tensor | None = None,
        graphs: int = 0,
        *,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.5,
        fanout: int = 10,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.dropout, self.fanout = width, depth, dropout, fanout
        self._hold(graph, features, graph_of, graphs)
        self.table = nn.Embedding(graph.height, width) if features is None else None
        inputs = width if features is None else features.shape[1]
        if isinstance(features, Tensor):
            spread, centre = torch.std_mean(features, 0, correction=0)
            self.register_buffer("centre", centre)
            self.register_buffer("spread", torch.where(spread > 0, spread, 1))
        self.inwards = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(GCNConv(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.pair = nn.Linear(3 * width, width)
        self.pool = nn.Linear(2 * width, width) if graph_of is not None else None

    graph: SparseBuffer
    members_of: SparseBuffer | None
    sparse: SparseBuffer | None
    features: Tensor | None
    centre: Tensor
    spread: Tensor

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        level, ends = inputs["level"], inputs["ends"]
        links, wholes = level == LINK, level == GRAPH
        pairs = ends[links] if self.training else ends[:0]
        seeds, owner = ends[~wholes].flatten(), None
        if bool(wholes.any()):
            owner, members = self._members(ends[wholes, 0])
            seeds = torch.cat([seeds, members])
        found, place = self._embedded(seeds, pairs)
        count = 2 * int((~wholes).sum())
        first, second = (found[place[:count].view(-1, 2)[:, k]] for k in (0, 1))
        features = found.new_empty(len(level), self.width)
        nodes = ~links[~wholes]
        features[level == NODE] = first[nodes]
        if bool(links.any()):
            u, v = first[~nodes], second[~nodes]
            features[links] = self.pair(torch.cat([u + v, u * v, (u - v).abs()], 1)).to(features.dtype)
        if owner is not None:
            features[wholes] = self._pooled(found[place[count:]], owner, int(wholes.sum())).to(features.dtype)
        return features

    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `like` that build this encoder again, but for its tensors, as JSON values."""
        sparse = None if self.sparse is None else len(self.sparse.matrix.columns)
        return {
            "nodes": self.graph.matrix.height,
            "entries": len(self.graph.matrix.columns),
            "inputs": None if self.table is not None else self.inwards.in_features,
            "sparse": sparse,
            "graphs": None if self.members_of is None else self.members_of.matrix.height,
            **{name: getattr(self, name) for name in ("width", "depth", "dropout", "fanout")},
        }

    @classmethod
    def like(
        cls, nodes: int, entries: int, inputs: int | None, sparse: int | None, graphs: int | None, **settings: Any
    ) -> GraphEncoder:
        """An encoder of these sizes, whose tensors are loaded later."""
        features: Tensor | CSR | None = None if inputs is None else torch.zeros(nodes, inputs)
        if sparse is not None:
            features = _empty(nodes, int(inputs or 0), sparse, values=True)
        graph_of = None if graphs is None else torch.zeros(nodes, dtype=torch.int64)
        return cls(_empty(nodes, nodes, entries), features, graph_of, graphs or 0, **settings)

    def look_at(
        self, graph: CSR, features: Tensor | CSR | None = None, graph_of: Tensor | None = None, graphs: int = 0
    ) -> None:
        """From now on answer questions about another graph, by what was learned on the first.

        Its features are standardised by the first graph's mean and deviation. Arguments are those of the class.

        Raises:
            InputError: the model knows its own nodes alone, or these features are not of the kind or number that it reads.
        """
        if self.table is not None:
            raise InputError("a vector was learned for each node, without features: no other nodes are known")
        kind, width = "dense" if self.sparse is None else "sparse", self.inwards.in_features
        found = "no" if features is None else f"{features.shape[1]} {'dense' if isinstance(features, Tensor) else 'sparse'}"
        if found != f"{width} {kind}":
            raise InputError(f"{found} features of a node, expected {width} {kind} ones, as the model was trained on")
        self._hold(graph, features, graph_of if self.pool is not None else None, graphs)
        self.to(self.inwards.weight.device)

    def _hold(self, graph: CSR, features: Tensor | CSR | None, graph_of: Tensor | None, graphs: int) -> None:
        self.graph = SparseBuffer(graph, stored=True)
        self.members_of = self.sparse = None
        if graph_of is not None:
            nodes = torch.arange(len(graph_of))
            self.members_of = SparseBuffer(CSR.from_entries(graph_of, nodes, (graphs, len(graph_of))), stored=True)
        if isinstance(features, CSR):
            ones = torch.ones(len(features.columns)) if features.values is None else features.values
            self.sparse = SparseBuffer(features.with_values(ones), stored=True)
        self.register_buffer("features", features if isinstance(features, Tensor) else None)

    def _members(self, graphs: Tensor) -> tuple[Tensor, Tensor]:
        if self.members_of is None:
            raise InputError("a question about whole graphs, expected an encoder that was given graph_of")
        membership = self.members_of.matrix
        owner, entries = membership.entries_of(graphs)
        return owner, membership.columns[entries]

    def _embedded(self, seeds: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the nodes, and at which place each of the seeds is."""
        graph = self.graph.matrix
        if graph.height <= WHOLE:
            return self._network(graph.without(pairs) if len(pairs) else graph, None, None), seeds
        wanted, place = torch.unique(seeds, return_inverse=True)
        fanouts = [self.fanout if self.training else -1] * self.depth
        nodes, part = sample_neighbours(graph, wanted, fanouts, rescale=self.training)
        sums = graph.degrees[nodes].to(torch.get_default_dtype())
        if len(pairs):
            local = torch.searchsorted(wanted, pairs)  # the seeds come first among the nodes
            part = part.without(local)
            linked, _ = graph.find(*pairs.unbind(1))
            sums = sums.index_add(0, local[linked].flatten(), sums.new_full((2 * int(linked.sum()),), -1))
        return self._network(part, nodes, sums), place

    def _network(self, graph: CSR, nodes: Tensor | None, sums: Tensor | None) -> Tensor:
        x = self._first(nodes)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + F.dropout(F.relu(norm(layer(graph, x, sums))), self.dropout, self.training)
        return x

    def _first(self, nodes: Tensor | None) -> Tensor:
        if self.table is not None:
            rows: Tensor = self.inwards(self.table.weight if nodes is None else self.table(nodes))
            return rows
        if self.sparse is not None:
            matrix = self.sparse.matrix if nodes is None else self.sparse.matrix.take(nodes)
            return linear(self.inwards, dropout(matrix, self.dropout, self.training))
        assert self.features is not None
        features = self.features if nodes is None else self.features[nodes]
        standard: Tensor = self.inwards((features - self.centre) / self.spread)
        return standard

    def _pooled(self, members: Tensor, owner: Tensor, graphs: int) -> Tensor:
        assert self.pool is not None
        index = owner[:, None].expand_as(members)
        empty = members.new_zeros(graphs, self.width)
        both = [empty.scatter_reduce(0, index, members, how, include_self=False) for how in ("mean", "amax")]
        pooled: Tensor = self.pool(torch.cat(both, 1))
        return pooled


def questions(level: int, ends: Tensor) -> dict[str, Tensor]:
    """Rows of one level as an encoder's inputs: ``ends`` is ``(N, 2)`` for links, ``(N,)`` for nodes and graphs."""
    both = ends if ends.ndim == 2 else torch.stack([ends, ends], 1)
    return {"level": torch.full((len(both),), level), "ends": both.long()}


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of several levels, one after another."""
    return {name: torch.cat([part[name] for part in parts]) for name in ("level", "ends")}


def _empty(height: int, width: int, entries: int, values: bool = False) -> CSR:
    offsets = torch.zeros(height + 1, dtype=torch.int64)
    return CSR(offsets, torch.zeros(entries, dtype=torch.int64), width, torch.zeros(entries) if values else None)
