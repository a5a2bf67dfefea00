"""What every pretext task is: a head, and a loss of an encoder on a graph without labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from polytask.nn.graph import CSR, drop_edges, mask_features, subgraph
from polytask.papers.paretognn.batches import PretextBatch
from polytask.papers.paretognn.parts import Sampler, everything

NodeEncoder: TypeAlias = Callable[..., Tensor]
"""Called with a graph of ``N`` nodes and their features ``(N, F)``, gives ``(N, width)``. `LinkReconstruction` calls it with
a third argument too, ``sums`` of `polytask.nn.graph.propagate`, where it draws neighbours."""


class Pretext(nn.Module):
    """A pretext task: a module that holds its head alone, and is given the encoder.

    Args:
        part: what it sees of a graph in a step.
    """

    def __init__(self, part: Sampler = everything) -> None:
        super().__init__()
        self.part = part

    @abstractmethod
    def forward(self, encoder: NodeEncoder, graph: CSR, x: Tensor, seeds: int | None = None) -> Tensor:
        """The loss, a scalar, on a graph and features ``(N, F)``: of its first ``seeds`` nodes, by default of all."""

    def loss(self, encoder: NodeEncoder, graph: CSR, x: Tensor, batch: PretextBatch) -> Tensor:
        """The loss on the part of the graph that a step looks at."""
        part = self.part(graph, batch.nodes)
        if part is None:
            found: Tensor = self(encoder, graph, x)
        else:
            found = self(encoder, subgraph(graph, part.nodes), x[part.nodes], part.seeds)
        return found


def view(encoder: NodeEncoder, graph: CSR, x: Tensor, rate: float) -> Tensor:
    """Embeddings of a view: each edge dropped, and each column of the features masked, with chance ``rate``."""
    return encoder(drop_edges(graph, rate), mask_features(x, rate))


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
