"""A graph whose nodes and edges are sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polytask.data.graph import GraphData
from polytask.errors import InputError
from polytask.nn.graph import CSR
from polytask.papers._minilm import embedded
from polytask.papers.ofa.texts import Embed, edge_sentence, node_sentence


@dataclass(frozen=True, eq=False)
class TextGraph:
    """A text-attributed graph, or a set of them side by side. Made by `TextGraph.build`.

    Attributes:
        name: what to call it in errors.
        table: ``(K, D)`` its distinct sentences, embedded.
        nodes: ``(N,)`` the row of each node's sentence.
        incoming: ``(N, N)``, row ``i`` with the sources of the edges into node ``i``, in both directions of every edge; the
            values are rows of the edges' sentences. Two nodes may have several edges, as relations.
        starts: ``(G + 1,)`` where each graph's nodes begin, and their number; of one graph ``None``.
    """

    name: str
    table: Tensor
    nodes: Tensor
    incoming: CSR
    starts: Tensor | None = None

    @classmethod
    def build(
        cls,
        data: GraphData,
        nodes: Sequence[str],
        edges: Sequence[str] = ("is linked to",),
        *,
        node_of: Tensor | None = None,
        starts: Tensor | None = None,
        embed: Embed = embedded,
    ) -> TextGraph:
        """A graph from its structure and the texts of its parts; what the encoder is given has the paper's prefixes.

        Every edge leads both ways; where ``data`` is directed, as a knowledge graph is, the other way has a sentence of its
        own, "inverse relation of ...".

        Args:
            data: nodes and edges; several graphs have their nodes one after another.
            nodes: their texts, ``N``, or as many distinct ones as there are with ``node_of``.
            edges: the text of each type of edge, by ``data.edge_types``.
            node_of: ``(N,)`` which text each node has.
            starts: of several graphs, ``(G + 1,)``.
            embed: the encoder.

        Raises:
            InputError: texts that do not fit the nodes or types, an edge between two graphs.
        """
        kinds = torch.zeros(len(data.edges), dtype=torch.int64) if data.edge_types is None else data.edge_types
        if len(kinds) and not 0 <= int(kinds.min()) <= int(kinds.max()) < len(edges):
            raise InputError(
                f"{data.name}: types of edges from {int(kinds.min())} to {int(kinds.max())}, {len(edges)} texts"
            )
        if node_of is None:
            distinct = list(dict.fromkeys(nodes))
            number = {text: k for k, text in enumerate(distinct)}
            node_of, nodes = torch.tensor([number[text] for text in nodes], dtype=torch.int64), distinct
        if len(node_of) != data.nodes or (len(node_of) and not 0 <= int(node_of.min()) <= int(node_of.max()) < len(nodes)):
            raise InputError(f"{data.name}: {len(nodes)} texts for {data.nodes} nodes, expected one for each")
        if starts is not None:
            own = torch.searchsorted(starts, data.edges, right=True)
            if bool((own[:, 0] != own[:, 1]).any()):
                row = int((own[:, 0] != own[:, 1]).nonzero()[0])
                raise InputError(f"{data.name}: edge {row + 1}: nodes {data.edges[row].tolist()} are of different graphs")
        inverse = [f"inverse relation of {text}" for text in edges] if data.directed else []
        of_edges = embed([edge_sentence(text) for text in (*edges, *inverse)])
        table = torch.cat([embed([node_sentence(text) for text in nodes]), of_edges])
        back = kinds + (len(edges) if data.directed else 0)
        incoming = _incoming(data.edges, len(nodes) + kinds, len(nodes) + back, data.nodes)
        return cls(data.name, table, node_of.long(), incoming, starts)

    def without(self, edges: Tensor) -> TextGraph:
        """The graph without any edge between the nodes of ``edges`` ``(E, 2)``, in either direction."""
        keys, n = self.incoming.keys, self.incoming.width
        dropped = torch.isin(keys, torch.cat([edges[:, 0] * n + edges[:, 1], edges[:, 1] * n + edges[:, 0]]))
        return TextGraph(self.name, self.table, self.nodes, self.incoming.keep(~dropped), self.starts)


def _incoming(edges: Tensor, texts: Tensor, back: Tensor, nodes: int) -> CSR:
    """Every edge both ways, by its target; a self loop once. Repeated entries are kept, unlike in `CSR.from_entries`."""
    proper = edges[:, 0] != edges[:, 1]
    source, target = torch.cat([edges, edges[proper].flip(1)]).unbind(1)
    values = torch.cat([texts, back[proper]])
    order = torch.argsort(target * nodes + source, stable=True)
    offsets = F.pad(torch.bincount(target, minlength=nodes).cumsum(0), (1, 0))
    return CSR(offsets, source[order], nodes, values[order])
