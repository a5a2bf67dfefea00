"""The node encoder: one pass over the whole graph for all links."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.nn.graph import CSR, GCNConv, drop_edges, dropout, linear, propagate

KINDS = ("puregcn", "puresum", "gcn")


class Encoder(nn.Module):
    """Node features and graph -> ``(N, hidden)``.

    Args:
        inputs: the number of features, ``(N, inputs)`` dense or sparse; ignored with ``nodes``.
        nodes: the rows of an embedding table that stands for features, with orthogonal rows at first; the encoder is then
            given ``(N,)`` integers, as the nodes' own numbers or their species.
        hidden: the width.
        layers: how many times neighbours are summed over.
        kind: ``"puregcn"``: a linear layer, then ``D^-1/2 (A + I) D^-1/2`` alone; ``"puresum"``: with ``A``;
            ``"gcn"``: graph convolutions, each but the last followed by layer normalisation, dropout and ReLU.
        norm: that layer normalisation.
        residual: add a layer's input to its output where their widths agree.
        jumping: the output is a sum of all layers', with weights that are learned, standard normal at first.
        feature_dropout: of features, or of the looked-up rows (in the paper's code ``xdp``).
        dropout: after the first linear layer, and between convolutions (``gnndp``).
        edge_dropout: the share of edges that a pass in training leaves out (``gnnedp``).
        tail_dropout: of the last layer's output (``tdp``).
    """

    def __init__(
        self,
        inputs: int = 0,
        *,
        nodes: int | None = None,
        hidden: int = 256,
        layers: int = 1,
        kind: str = "puregcn",
        norm: bool = True,
        residual: bool = False,
        jumping: bool = False,
        feature_dropout: float = 0.0,
        dropout: float = 0.0,
        edge_dropout: float = 0.0,
        tail_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise InputError(f"unknown encoder {kind!r}: {suggest(kind, KINDS)}")
        if layers < 1 or (inputs < 1 and nodes is None):
            raise InputError(f"{layers} layers on {inputs} features, expected at least 1 of each, or nodes= for a table")
        self.kind, self.layers, self.residual, self.width = kind, layers, residual, hidden
        self.feature_dropout, self.dropout = feature_dropout, dropout
        self.edge_dropout, self.tail_dropout = edge_dropout, tail_dropout
        self.table = nn.Embedding(nodes, hidden) if nodes is not None else None
        if self.table is not None:
            nn.init.orthogonal_(self.table.weight)
            inputs = hidden
        pure = kind != "gcn"
        self.first = nn.Linear(inputs, hidden) if pure and self.table is None else None
        sizes = [inputs] + [hidden] * layers
        self.convolutions = nn.ModuleList() if pure else nn.ModuleList(map(GCNConv, sizes, sizes[1:]))
        self.norms = nn.ModuleList() if pure or not norm else nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers - 1))
        self.jump = nn.Parameter(torch.randn(layers)) if jumping else None

    def forward(self, graph: CSR, x: Tensor | CSR, sums: Tensor | None = None) -> Tensor:
        """Embeddings of all nodes of ``graph``; ``sums`` as for `polytask.nn.graph.propagate`."""
        if self.table is not None:
            assert isinstance(x, Tensor)
            x = self.table(x)
        x = dropout(x, self.feature_dropout, self.training)
        if self.first is not None:
            x = F.dropout(linear(self.first, x), self.dropout, self.training)
        if self.training and self.edge_dropout:
            graph = drop_edges(graph, self.edge_dropout, rescale=graph.values is not None)
        outputs: list[Tensor] = []
        for number in range(self.layers):
            out = self._layer(number, graph, x, sums)
            if self.residual and isinstance(x, Tensor) and x.shape == out.shape:
                out = out + x
            if number == self.layers - 1:
                out = F.dropout(out, self.tail_dropout, self.training)
            outputs.append(out)
            x = out
        return outputs[-1] if self.jump is None else torch.einsum("l,lnf->nf", self.jump, torch.stack(outputs))

    def _layer(self, number: int, graph: CSR, x: Tensor | CSR, sums: Tensor | None) -> Tensor:
        if self.kind != "gcn":
            assert isinstance(x, Tensor)
            return propagate(graph, x, sums) if self.kind == "puregcn" else graph @ x
        out: Tensor = self.convolutions[number](graph, x, sums)
        if number == self.layers - 1:
            return out
        if self.norms:
            out = self.norms[number](out)
        return F.dropout(out, self.dropout, self.training).relu()
