"""Local structure: which pairs of nodes are linked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.nn.graph import CSR, sample_neighbours
from polytask.papers.paretognn.batches import PretextBatch
from polytask.papers.paretognn.pretext._pretext import NodeEncoder, Pretext


class LinkReconstruction(Pretext):
    """Tells edges from other pairs: cross entropy of ``w . (r_u * r_v)`` with ``r = ReLU(W h / |h|)``.

    Args:
        width: of the embeddings.
        hidden: of ``r``.
        fanouts: how many neighbours of a node are drawn in each hop around a batch's pairs, -1 for all. Sums are those of
            the whole graph in expectation.
        dropout: of the features.
    """

    def __init__(self, width: int, hidden: int = 512, fanouts: Sequence[int] = (15, 10, 5), dropout: float = 0.4) -> None:
        super().__init__()
        self.fanouts, self.dropout = tuple(fanouts), dropout
        self.transform = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.output = nn.Linear(hidden, 1)

    def loss(self, encoder: NodeEncoder, graph: CSR, x: Tensor, batch: PretextBatch) -> Tensor:
        pairs = torch.cat([batch.positive, batch.negative])
        seeds, place = torch.unique(pairs, return_inverse=True)
        nodes, part = sample_neighbours(graph, seeds, self.fanouts, rescale=True)
        h = encoder(part, F.dropout(x[nodes], self.dropout, self.training), graph.sums()[nodes])
        return self.error(h, place[: len(batch.positive)], place[len(batch.positive) :])

    def forward(self, encoder: NodeEncoder, graph: CSR, x: Tensor, seeds: int | None = None) -> Tensor:
        """Of all edges between the first ``seeds`` nodes, and as many random pairs of those."""
        count = graph.height if seeds is None else seeds
        inside = (graph.rows < graph.columns) & (graph.columns < count)
        positive = torch.stack([graph.rows[inside], graph.columns[inside]], 1)
        negative = torch.randint(count, (len(positive), 2), device=positive.device)
        return self.error(encoder(graph, F.dropout(x, self.dropout, self.training)), positive, negative)

    def error(self, h: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The mean cross entropy, for embeddings ``(N, width)``, of pairs that are edges ``(P, 2)`` and of others."""
        r = self.transform(F.normalize(h))
        scores = [self.output(r[pairs[:, 0]] * r[pairs[:, 1]])[:, 0] for pairs in (positive, negative)]
        return torch.cat([F.softplus(-scores[0]), F.softplus(scores[1])]).mean()
