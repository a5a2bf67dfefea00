"""Spans of time as features."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TimeEncoding(nn.Module):
    """``cos(t w + b)``, of shape ``(..., width)`` for spans ``t`` ``(...)``.

    At first ``w = 10^(-linspace(0, 9, width))``, so that with seconds there are features from seconds to decades, and
    ``b = 0``; both are learned. The cosine's argument is computed in float64: in float32 a time such as 1.1e9 s is known
    only to a minute. Xu et al., *Inductive representation learning on temporal graphs* (TGAT), ICLR 2020, as TGN uses it.

    >>> TimeEncoding(3)(torch.zeros(2, dtype=torch.float64)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.frequency = nn.Parameter(10.0 ** -torch.linspace(0, 9, width))
        self.phase = nn.Parameter(torch.zeros(width))

    def forward(self, time: Tensor) -> Tensor:
        angle = time.double()[..., None] * self.frequency.double() + self.phase.double()
        return angle.cos().to(self.frequency.dtype)
