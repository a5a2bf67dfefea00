"""ParetoGNN as a module that `polytask.fit` trains: a graph, its features, an encoder, pretext tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.nn.graph import CSR, SparseBuffer, sample_neighbours
from polytask.nn.modes import evaluating
from polytask.nn.recalibration import recalibrate
from polytask.papers.paretognn.batches import PretextBatch
from polytask.papers.paretognn.encoder import Encoder
from polytask.papers.paretognn.parts import Induced, Sampler, everything
from polytask.papers.paretognn.pretext import (
    Decorrelation,
    FeatureReconstruction,
    LinkReconstruction,
    NodeGraph,
    NodeSubgraph,
    Pretext,
)
from polytask.papers.paretognn.pretext.decorrelation import standardise

PRETEXTS = ("link", "recon", "ming", "minsg", "decor")
"""The tasks, by the paper's names: links, features, mutual information of nodes with graph and subgraph, decorrelation."""


class ParetoGNN(nn.Module):
    """Pre-trains one encoder of nodes by several pretext tasks, whose losses it names.

    The paper balances them by ``LossMGDA(normalise="l2")``. A batch is a `PretextBatch`.

    Args:
        encoder: called as `polytask.papers.paretognn.pretext.NodeEncoder` says; its parameters are what tasks share.
        pretexts: the tasks by name.
        graph: a symmetric adjacency, ``(N, N)``; self loops are left out, since a graph convolution adds its own.
        features: ``(N, F)``, as the encoder is to see them.
    """

    def __init__(self, encoder: nn.Module, pretexts: Mapping[str, Pretext], graph: CSR, features: Tensor) -> None:
        super().__init__()
        if len(features) != graph.height or features.ndim != 2:
            raise InputError(f"features {tuple(features.shape)}, expected ({graph.height}, F), as the graph has nodes")
        self.encoder, self.pretexts = encoder, nn.ModuleDict(pretexts)
        self.graph = SparseBuffer(graph.keep(graph.rows != graph.columns))
        self.register_buffer("features", features, persistent=False)
        self.features: Tensor

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the pretext tasks."""
        return tuple(self.pretexts)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The encoder's."""
        return self.encoder.parameters()

    def losses(self, batch: PretextBatch) -> dict[str, Tensor]:
        """The loss of each pretext task, each on views and parts of its own."""
        graph = self.graph.matrix
        return {name: task.loss(self.encoder, graph, self.features, batch) for name, task in self.pretexts.items()}  # type: ignore[operator]

    def forward(self, part: tuple[CSR, Tensor, Tensor | None]) -> Tensor:
        """Embeddings of a graph's nodes, with features, and with ``sums`` as for `polytask.nn.graph.propagate`."""
        found: Tensor = self.encoder(*part)
        return found

    @torch.no_grad()
    def embed(
        self, graph: CSR | None = None, fanouts: Sequence[int] | None = None, chunk: int = 4096, measured: int = 8
    ) -> Tensor:
        """Embeddings ``(N, width)`` of all nodes, without gradient and without anything dropped.

        Batch norms are first given the statistics of this graph: those that training leaves are of some view's.

        Args:
            graph: another adjacency of the same nodes, as one with edges that training was not to see.
            fanouts: for graphs too large for one pass: of each layer of the encoder, how many neighbours of a node to draw,
                -1 for all; ``None`` for one pass over the whole graph.
            chunk: nodes at a time, with ``fanouts``.
            measured: how many random chunks the statistics are from, with ``fanouts``.
        """
        graph = self.graph.matrix if graph is None else graph.keep(graph.rows != graph.columns)
        device = self.features.device
        if fanouts is None:
            whole = graph, self.features, None
            recalibrate(self, [whole])
            with evaluating(self):
                found: Tensor = self(whole)
                return found
        drawn = torch.split(torch.randperm(graph.height, device=device)[: measured * chunk], chunk)
        recalibrate(self, (self._around(graph, nodes, fanouts) for nodes in drawn))
        with evaluating(self):
            parts = torch.split(torch.arange(graph.height, device=device), chunk)
            return torch.cat([self(self._around(graph, nodes, fanouts))[: len(nodes)] for nodes in parts])

    def _around(self, graph: CSR, nodes: Tensor, fanouts: Sequence[int]) -> tuple[CSR, Tensor, Tensor]:
        drawn, part = sample_neighbours(graph, nodes, fanouts, rescale=True)
        sums = graph.degrees[drawn].float() if graph.values is None else graph.take(drawn).sums()
        return part, self.features[drawn], sums


def pareto_gnn(
    graph: CSR,
    features: Tensor | CSR,
    *,
    pretexts: Sequence[str] = PRETEXTS,
    widths: Sequence[int] = (512, 256),
    hidden: int = 512,
    rates: tuple[float, float] = (0.3, 0.2),
    fanouts: Sequence[int] = (15, 10, 5),
    decor: int = 10_000,
    part: Sampler = everything,
    contrasted: Sampler | None = None,
) -> ParetoGNN:
    """The paper's encoder and pretext tasks, for a graph and its nodes' features.

    Args:
        graph: a symmetric adjacency, of the edges that may be seen.
        features: ``(N, F)``, dense or sparse; each column is given mean 0 and standard deviation 1.
        pretexts: which of the five tasks.
        widths: of the encoder's layers.
        hidden: of heads.
        rates: of dropped edges and masked features in the views of ``"minsg"`` and of ``"decor"``.
        fanouts: neighbours that ``"link"`` draws in each hop.
        decor: how many nodes ``"decor"`` looks at, see `Induced`.
        part: what ``"recon"`` and ``"ming"`` see. All, as in the paper for ``"ming"``; `Neighbourhood` with a limit for a
            graph that is too large.
        contrasted: what ``"minsg"`` sees; `Neighbourhood` by default.
    """
    dense = features if isinstance(features, Tensor) else features @ torch.eye(features.width)
    encoder = Encoder(dense.shape[1], widths)
    width = encoder.width
    chosen: dict[str, Pretext] = {}
    for name in pretexts:
        if name == "link":
            chosen[name] = LinkReconstruction(width, hidden, fanouts)
        elif name == "recon":
            chosen[name] = FeatureReconstruction(width, dense.shape[1], part=part)
        elif name == "ming":
            chosen[name] = NodeGraph(width, part)
        elif name == "minsg":
            chosen[name] = NodeSubgraph(width, hidden, rates[0], part=contrasted)
        elif name == "decor":
            chosen[name] = Decorrelation(rates[1], part=Induced(decor))
        else:
            raise InputError(f"unknown pretext task {name!r}: {suggest(name, PRETEXTS)}")
    return ParetoGNN(encoder, chosen, graph, standardise(dense.float()))
