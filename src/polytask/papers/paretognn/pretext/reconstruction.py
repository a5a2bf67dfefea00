"""Features: those of masked nodes, told from the nodes around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.nn.graph import CSR, GCNConv, drop_edges
from polytask.papers.paretognn.parts import Sampler, everything
from polytask.papers.paretognn.pretext._pretext import NodeEncoder, Pretext


class FeatureReconstruction(Pretext):
    """Restores the features of masked nodes: GraphMAE of Hou et al., KDD 2022.

    Masked nodes have a token, which is learned, for features; their embeddings are set to zero before a graph convolution
    decodes all of them. The loss is the `scaled_cosine_error` of the masked nodes.

    Args:
        width: of the embeddings.
        features: how many a node has.
        mask: the share of nodes that is masked.
        drop: the chance of each edge to be dropped.
        power: of the error.
        part: as for `Pretext`.
    """

    def __init__(
        self,
        width: int,
        features: int,
        mask: float = 0.5,
        drop: float = 0.35,
        power: float = 3.0,
        part: Sampler = everything,
    ) -> None:
        super().__init__(part)
        if not 0 < mask < 1:
            raise InputError(f"mask {mask}, expected a share of nodes above 0 and below 1")
        self.mask, self.drop, self.power = mask, drop, power
        self.token = nn.Parameter(torch.zeros(features))
        self.between = nn.Linear(width, width, bias=False)
        self.decoder = GCNConv(width, features)

    def forward(self, encoder: NodeEncoder, graph: CSR, x: Tensor, seeds: int | None = None) -> Tensor:
        count = len(x) if seeds is None else seeds
        graph = drop_edges(graph, self.drop)
        chosen = torch.randperm(count, device=x.device)[: max(1, round(self.mask * count))]
        masked = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        masked[chosen] = True
        h = self.between(encoder(graph, torch.where(masked, self.token.to(x), x)))
        decoded = self.decoder(graph, h.masked_fill(masked, 0))
        return scaled_cosine_error(decoded[chosen], x[chosen], self.power)


def scaled_cosine_error(found: Tensor, wanted: Tensor, power: float = 3.0) -> Tensor:
    """The mean over rows of ``(1 - cos)^power``.

    >>> x = torch.eye(2)
    >>> [float(scaled_cosine_error(x, y)) for y in (x, -x, x.flip(0))]
    [0.0, 8.0, 1.0]
    """
    return (1 - F.cosine_similarity(found.float(), wanted.float())).pow(power).mean()
