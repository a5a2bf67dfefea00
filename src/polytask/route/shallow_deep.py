"""The parts of a shallow-deep network: internal classifiers, and weights by which their losses come in.

Kaya, Hong and Dumitras, *Shallow-deep networks: understanding and mitigating network overthinking*, ICML 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError


class MixedPool(nn.Module):
    """``a * max + (1 - a) * mean`` over windows, with a learned ``a`` that starts anywhere in [0, 1].

    Args:
        window: side and stride; what is left over at the edges is dropped.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window, self.share = window, nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, H // window, W // window)``."""
        share = self.share.to(x.dtype)
        return share * F.max_pool2d(x, self.window) + (1 - share) * F.avg_pool2d(x, self.window)


def internal_classifier(channels: int, size: int, classes: int) -> nn.Sequential:
    """A head on feature maps ``(N, channels, size, size)``: mixed pooling to about 4 x 4, and one linear layer.

    The window is ``size // 4``; maps smaller than 4 are not pooled. Kaya et al., Section 3.

    >>> sum(parameter.numel() for parameter in internal_classifier(64, 16, 10).parameters())
    10251
    """
    if min(channels, size, classes) < 1:
        raise InputError(f"channels {channels}, size {size}, classes {classes}: expected 1 or more of each")
    window = size // 4
    pooled = size // window if window else size
    layers: list[nn.Module] = [MixedPool(window)] if window else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * pooled * pooled, classes))


def exit_weights(progress: float, final: Sequence[float]) -> list[float]:
    """The weights of the early exits' losses, ``tau_k = min(c_k, 0.01 + progress * c_k)``; the last exit's is 1.

    Args:
        progress: of training, 0 to 1.
        final: ``c_k``, what each comes to; Kaya et al. take the part of the whole cost that is done at the exit.

    >>> exit_weights(0.5, [0.2, 1.0])
    [0.11, 0.51]
    """
    if not 0 <= progress <= 1:
        raise InputError(f"progress {progress}, expected 0 to 1")
    return [min(c, 0.01 + progress * c) for c in final]


def exit_loss(logits: Sequence[Tensor], labels: Tensor, weights: Sequence[float]) -> Tensor:
    """The last exit's cross-entropy, and that of each early exit times its weight.

    Args:
        logits: of all exits, ``(N, classes)`` each, as `polytask.route.EarlyExit` gives them.
        labels: ``(N,)`` int64; -100 is no label.
        weights: one for each early exit.
    """
    if len(weights) != len(logits) - 1:
        raise InputError(f"{len(weights)} weights for {len(logits)} exits, expected one for each but the last")
    losses = [weight * F.cross_entropy(one, labels) for weight, one in zip([*weights, 1.0], logits, strict=True)]
    return torch.stack(losses).sum()
