"""Nodes and what surrounds them: two views of a node, told from all other nodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from polytask.nn.graph import CSR
from polytask.papers.paretognn.parts import Neighbourhood, Sampler
from polytask.papers.paretognn.pretext._pretext import NodeEncoder, Pretext, mlp, view


class NodeSubgraph(Pretext):
    """Contrasts two views of each node: GRACE of Zhu et al., 2020, with one rate and temperature.

    Args:
        width: of the embeddings.
        hidden: of the head.
        rate: of dropped edges and of masked features.
        temperature: of the `contrast`.
        part: as for `Pretext`; the contrast takes memory as the square of its nodes.
    """

    def __init__(
        self, width: int, hidden: int = 512, rate: float = 0.3, temperature: float = 0.1, part: Sampler | None = None
    ) -> None:
        super().__init__(Neighbourhood() if part is None else part)
        self.rate, self.temperature = rate, temperature
        self.head = mlp(width, hidden, width)

    def forward(self, encoder: NodeEncoder, graph: CSR, x: Tensor, seeds: int | None = None) -> Tensor:
        first, second = (self.head(view(encoder, graph, x, self.rate)[:seeds]) for _ in range(2))
        return contrast(first, second, self.temperature)


def contrast(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """The loss of telling a node's other view from all other nodes in both views, the mean of both directions.

    For ``i``: minus the log of ``exp(c(u_i, v_i) / t)`` over the sum of ``exp(c(u_i, v_j) / t)`` for all ``j`` and of
    ``exp(c(u_i, u_j) / t)`` for ``j != i``, with ``c`` the cosine.

    Args:
        first, second: ``(N, D)``: the views.
        temperature: ``t``.
    """
    u, v = F.normalize(first.float()), F.normalize(second.float())
    across = u @ v.t() / temperature
    own = torch.eye(len(u), dtype=torch.bool, device=u.device)
    total = torch.zeros_like(u[:, 0])
    for one, scores in ((u, across), (v, across.t())):
        within = (one @ one.t() / temperature).masked_fill(own, -torch.inf)
        total = total + torch.cat([scores, within], 1).logsumexp(1) - scores.diagonal()
    return total.mean() / 2
