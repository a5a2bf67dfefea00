"""Nodes and their graph: which embeddings belong to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.nn.graph import CSR
from polytask.papers.paretognn.parts import Sampler, everything
from polytask.papers.paretognn.pretext._pretext import NodeEncoder, Pretext


class NodeGraph(Pretext):
    """Tells nodes of the graph from those of the same graph with features permuted: Deep Graph Infomax, ICLR 2019.

    The logit is ``h . W s`` with the summary ``s = sigmoid(mean h)``; the loss is the cross entropy of true nodes plus that
    of the others.

    Args:
        width: of the embeddings.
        part: as for `Pretext`.
    """

    def __init__(self, width: int, part: Sampler = everything) -> None:
        super().__init__(part)
        self.discriminator = nn.Linear(width, width, bias=False)
        nn.init.uniform_(self.discriminator.weight, -(width**-0.5), width**-0.5)

    def forward(self, encoder: NodeEncoder, graph: CSR, x: Tensor, seeds: int | None = None) -> Tensor:
        true = encoder(graph, x)[:seeds]
        false = encoder(graph, x[torch.randperm(len(x), device=x.device)])[:seeds]
        summary = self.discriminator(true.mean(0).sigmoid())
        return F.softplus(-(true @ summary)).mean() + F.softplus(false @ summary).mean()
