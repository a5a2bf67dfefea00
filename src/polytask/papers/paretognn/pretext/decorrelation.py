"""Representations: views that agree, in features that do not repeat one another."""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.nn.graph import CSR
from polytask.papers.paretognn.parts import Induced, Sampler
from polytask.papers.paretognn.pretext._pretext import NodeEncoder, Pretext, view


class Decorrelation(Pretext):
    """Brings two views together and keeps their columns apart: CCA-SSG of Zhang et al., NeurIPS 2021. It has no head.

    Args:
        rate: of dropped edges and of masked features.
        weight: of the columns' correlations.
        part: as for `Pretext`.
    """

    def __init__(self, rate: float = 0.2, weight: float = 1e-3, part: Sampler | None = None) -> None:
        super().__init__(Induced() if part is None else part)
        self.rate, self.weight = rate, weight

    def forward(self, encoder: NodeEncoder, graph: CSR, x: Tensor, seeds: int | None = None) -> Tensor:
        first, second = (standardise(view(encoder, graph, x, self.rate)[:seeds].float()) for _ in range(2))
        return decorrelation(first, second, self.weight)


def decorrelation(first: Tensor, second: Tensor, weight: float = 1e-3) -> Tensor:
    """``|(U - V) / N| + weight (|I - U'U / N| + |I - V'V / N|)`` in Frobenius norms of ``U`` and ``V`` ``(N, D)``.

    CCA-SSG squares the norms, and does not divide the first by ``N``.
    """
    size = len(first)
    identity = torch.eye(first.shape[1], dtype=first.dtype, device=first.device)
    apart = torch.stack([torch.linalg.vector_norm(identity - z.t() @ z / size) for z in (first, second)]).sum()
    together: Tensor = torch.linalg.vector_norm((first - second) / size)
    return together + weight * apart


def standardise(x: Tensor) -> Tensor:
    """Columns with mean 0 and (unbiased) standard deviation 1; one that is constant becomes 0."""
    x = x - x.mean(0)
    return x / x.std(0).clamp(min=1e-8)
