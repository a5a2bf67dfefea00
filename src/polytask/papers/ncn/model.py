"""NCN as a module that `polytask.fit` trains: a graph, its features, an encoder, a predictor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.data.graph import Links
from polytask.errors import InputError
from polytask.measure import hits_at, pooled
from polytask.nn.graph import CSR, SparseBuffer, common_neighbours, k_hop, sample_neighbours, subgraph
from polytask.papers.ncn.encoder import Encoder
from polytask.papers.ncn.predictor import LinkPredictor


class NCN(nn.Module):
    """Predicts links of one graph; its losses are those of true links and of pairs that are not linked.

    A batch is `polytask.data.graph.Links`, as `polytask.data.graph.LinkBatches` gives them. The loss is the sum of
    ``softplus(-s)``, the mean over true links, and ``softplus(s)``, the mean over the others.

    Args:
        encoder: of the nodes, called with the graph and the features.
        predictor: of the links.
        graph: of the training edges alone, ``(N, N)``.
        features: what the encoder is given: ``(N, F)`` dense or sparse, or ``(N,)`` integers.
        remove_targets: a training batch's true links are taken out of the graph before encoder and predictor see it, as
            they will not be there for links to predict (target link removal; ``maskinput`` in the paper's code).
        fanouts: for graphs too large for a pass over all of them: of each layer of the encoder, how many neighbours of a
            node it sums over, drawn anew for each batch; -1 for all. The predictor's sets stay exact. ``None``: all.
        hits: the ``K`` of the HR@K that `evaluate` reports.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: LinkPredictor,
        graph: CSR,
        features: Tensor | CSR,
        *,
        remove_targets: bool = True,
        fanouts: Sequence[int] | None = None,
        hits: int = 100,
    ) -> None:
        super().__init__()
        if features.shape[0] != graph.height:
            raise InputError(f"features of {features.shape[0]} nodes, expected {graph.height}, as the graph has")
        if fanouts is not None and len(fanouts) != encoder.layers:
            raise InputError(f"fanouts {list(fanouts)}, expected one for each of the encoder's {encoder.layers} layers")
        self.encoder, self.predictor = encoder, predictor
        self.remove_targets, self.fanouts, self.hits = remove_targets, fanouts, hits
        self.graph = SparseBuffer(graph)
        self.sparse = SparseBuffer(features) if isinstance(features, CSR) else None
        self.register_buffer("dense", None if isinstance(features, CSR) else features, persistent=False)
        self.dense: Tensor | None

    @property
    def features(self) -> Tensor | CSR:
        """What the encoder is given."""
        if self.sparse is not None:
            return self.sparse.matrix
        assert self.dense is not None
        return self.dense

    def losses(self, batch: Links) -> dict[str, Tensor]:
        """``{"links": ..., "others": ...}``: the mean loss of the true links, and of the others."""
        removed = batch.positive if self.training and self.remove_targets else None
        logits = self(torch.cat([batch.positive, batch.negative]), removed=removed)
        positive, negative = logits.split([len(batch.positive), len(batch.negative)])
        return {"links": F.softplus(-positive).mean(), "others": F.softplus(negative).mean()}

    def label_counts(self, batch: Links) -> dict[str, Tensor]:
        """How many pairs each loss is the mean of."""
        counts = {"links": batch.positive, "others": batch.negative}
        return {name: torch.tensor(float(len(pairs)), device=pairs.device) for name, pairs in counts.items()}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the losses."""
        return ("links", "others")

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All of them: both losses train every parameter."""
        return self.parameters()

    def forward(self, pairs: Tensor, graph: CSR | None = None, removed: Tensor | None = None) -> Tensor:
        """``(B,)`` logits of ``pairs`` ``(B, 2)``, in the training graph or in another of the same nodes.

        Edges ``removed``, between nodes of the pairs, are taken out of it first, in both directions.
        """
        graph = graph or self.graph.matrix
        if self.fanouts is not None:
            return self._sampled(pairs, graph, self.fanouts, removed)
        graph = graph if removed is None else graph.without(removed)
        found: Tensor = self.predictor(self.encoder(graph, self.features), graph, pairs)
        return found

    @torch.no_grad()
    def score(self, pairs: Tensor, graph: CSR | None = None, chunk: int = 65536) -> Tensor:
        """`forward` for any number of pairs, ``chunk`` of them at a time, without gradient; the encoder makes one pass.

        The mode is not changed: call ``eval()`` first. Pass a graph with more edges where more are known by now, as the
        paper does with validation edges of ogbl-collab.
        """
        graph = graph or self.graph.matrix
        if self.fanouts is not None:
            parts = [self._sampled(part, graph, self.fanouts) for part in pairs.split(chunk)]  # type: ignore[no-untyped-call]
        else:
            h = self.encoder(graph, self.features)
            parts = [self.predictor(h, graph, part) for part in pairs.split(chunk)]  # type: ignore[no-untyped-call]
        return torch.cat(parts) if parts else torch.zeros(0)

    def evaluate(self, links: Links) -> dict[str, dict[str, float]]:
        """``{"links": {"hits@K": ..., "auc": ..., "ap": ...}}``, higher is better; what `polytask.fit` can monitor."""
        device = self.graph.matrix.columns.device
        positive, negative = (self.score(pairs.to(device)) for pairs in links)
        return {"links": {f"hits@{self.hits}": hits_at(positive, negative, self.hits), **pooled(positive, negative)}}

    def _sampled(self, pairs: Tensor, graph: CSR, fanouts: Sequence[int], removed: Tensor | None = None) -> Tensor:
        """Logits by a pass over what the pairs' embeddings, and those in their sets, depend on.

        The predictor looks at the graph between ``core`` alone, which has every node that any of its sets can name. Edges
        are removed from what was drawn, so that the large graph is never copied.
        """
        seeds, place = torch.unique(pairs, return_inverse=True)
        if self.predictor.kind == "ncn" and self.predictor.depth == 0:
            others = torch.unique(common_neighbours(graph, pairs).columns)
            core = torch.cat([seeds, others[~torch.isin(others, seeds)]])
        else:
            core = k_hop(graph, seeds, self.predictor.reach)
        nodes, local = sample_neighbours(graph, core, fanouts, rescale=True)
        between = subgraph(graph, core)
        sums = graph.degrees[nodes].float() if graph.values is None else graph.take(nodes).sums()
        if removed is not None:
            places = torch.searchsorted(seeds, removed)
            before, local, between = between.sums(), local.without(places), between.without(places)
            sums[: len(core)] -= before - between.sums()
        features = self.features
        chosen = features[nodes] if isinstance(features, Tensor) else features.take(nodes)
        h = self.encoder(local, chosen, sums)[: len(core)]
        found: Tensor = self.predictor(h, between, place)
        return found
