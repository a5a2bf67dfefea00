"""Confidence that can be believed: a temperature for each exit, from held-out examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.errors import InputError


@torch.no_grad()
def fit_temperatures(logits: Sequence[Tensor], labels: Tensor, least: float = 0.05, most: float = 20.0) -> Tensor:
    """The temperature by which each exit's logits have to be divided for the least cross-entropy, ``(exits,)``.

    Guo et al., *On calibration of modern neural networks*, ICML 2017. The cross-entropy is convex in ``1 / T``, so that its
    minimum is where the mean of ``sum_j p_j z_j - z_label`` is 0; that is found by bisection. No answer changes, only how
    sure it is.

    Args:
        logits: of all exits on held-out examples, ``(N, classes)`` each, as `polytask.route.EarlyExit` gives them.
        labels: ``(N,)`` int64.
        least, most: bounds of the temperatures; an exit that is always right would have 0.

    >>> logits, labels = torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])  # sure by 0.98, right by 0.75
    >>> (logits[0] / fit_temperatures([logits], labels)).softmax(0)
    tensor([0.7500, 0.2500])
    """
    lengths = [len(one) for one in logits]
    if not len(labels) or set(lengths) != {len(labels)} or not 0 < least < most:
        raise InputError(
            f"logits of {lengths} examples, {len(labels)} labels, bounds {least} and {most}: expected as many, rising"
        )
    found = []
    for one in logits:
        z = one.double()
        own = z.gather(1, labels[:, None])[:, 0]
        low, high = torch.tensor(1 / most).log(), torch.tensor(1 / least).log()
        for _ in range(50):
            middle = (low + high) / 2
            slope = ((z * middle.exp()).softmax(1) * z).sum(1) - own
            low, high = (low, middle) if float(slope.mean()) > 0 else (middle, high)
        found.append((-low).exp())
    return torch.stack(found).to(logits[0].device)
