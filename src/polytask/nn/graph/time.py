"""Spans of time as features."""

from __future__ import annotations

import math
from typing import Any

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
        encoded: Tensor = _Cosine.apply(time, self.frequency, self.phase)  # type: ignore[no-untyped-call]
        return encoded


class _Cosine(torch.autograd.Function):
    """``cos(t w + b)`` with the angle in float64, and what is left of it after whole turns in the frequency's dtype, in
    which the cosine costs a fraction; without a gradient for the time."""

    @staticmethod
    def forward(ctx: Any, time: Tensor, frequency: Tensor, phase: Tensor) -> Tensor:
        angle = torch.addcmul(phase.double(), time.double()[..., None], frequency.double())
        angle = angle.remainder_(2 * math.pi).to(frequency.dtype)
        ctx.save_for_backward(time, angle)
        return angle.cos()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        time, angle = ctx.saved_tensors
        turned = (gradient.to(angle.dtype) * angle.sin()).flatten(0, -2)
        return None, -(time.reshape(-1).to(turned.dtype) @ turned), -turned.sum(0)
