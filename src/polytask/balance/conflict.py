"""Conflict between tasks: the cosines of their gradients on the shared parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def gradient_cosines(losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter]) -> Tensor:
    """The cosine of every pair of task gradients on ``shared``, ``(K, K)`` in the order of ``losses``, on the CPU.

    One backward pass for each loss; gradients accumulate nowhere (``.grad`` is untouched), and the graph of the losses is
    kept. A negative entry is a conflict; a row of NaN is a task whose gradient vanishes.
    """
    shared = [p for p in shared if p.requires_grad]
    rows = []
    for loss in losses.values():
        grads = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(shared, grads, strict=True)]
        rows.append(torch.cat([part.flatten().float() for part in parts]))
    return cosines(torch.stack(rows)).cpu()


def cosines(rows: Tensor) -> Tensor:
    """The cosine of every pair of ``rows`` ``(K, P)``, ``(K, K)``; NaN for a row of norm 0."""
    gramian = rows @ rows.T
    norms = gramian.diagonal().clamp(min=0).sqrt()
    return (gramian / norms[:, None] / norms).clamp(-1, 1)
