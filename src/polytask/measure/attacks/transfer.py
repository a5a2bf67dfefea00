"""What attacks on one model do to others, and noise of the same size beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from polytask.errors import InputError


@torch.no_grad()
def transfer_rates(
    attacked: Mapping[str, Tensor],
    targets: Mapping[str, Callable[[Tensor], Tensor]],
    images: Tensor,
    labels: Tensor,
    batch_size: int = 256,
) -> dict[str, dict[str, float]]:
    """By source and target, the share of images that the target gets wrong once they are attacked.

    Of those alone that the target gets right as they are: what it gets wrong anyway is no success.

    Args:
        attacked: by source, what an attack on it made of ``images``.
        targets: by name, functions from images to logits, in evaluation mode.
        images, labels: ``(N, ...)`` and ``(N,)``; best only such that the sources get right too.
        batch_size: of the targets' evaluation.

    >>> images = torch.tensor([[0.2], [0.4], [0.9]])
    >>> def bright(x): return torch.cat([0.5 - x, x - 0.5], 1)
    >>> transfer_rates({"up": images + 0.2}, {"bright": bright}, images, torch.tensor([0, 0, 0]))
    {'up': {'bright': 0.5}}
    """

    def right(target: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        pairs = zip(x.split(batch_size), labels.split(batch_size), strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([target(some).argmax(1) == own for some, own in pairs])

    at_first = {name: right(target, images) for name, target in targets.items()}
    for name, some in at_first.items():
        if not some.any():
            raise InputError(f"target {name!r} gets none of the {len(images)} images right, expected at least one")
    return {
        source: {name: float((~right(target, made))[at_first[name]].double().mean()) for name, target in targets.items()}
        for source, made in attacked.items()
    }


def noise(images: Tensor, norms: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images ``(N, ...)`` in [0, 1] with Gaussian noise of the L2 ``norms`` ``(N,)``, which is the control of an attack.

    The noise is cut at 0 and 1 and has its norm after that; where no noise in that direction is as large, it is the largest.
    """
    draw = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    shape = (-1, *[1] * (images.ndim - 1))

    def noisy(size: Tensor) -> Tensor:
        return (images + size.view(shape) * draw).clamp(0, 1)

    low, high = torch.zeros_like(norms), torch.full_like(norms, 1e4)
    for _ in range(50):
        middle = (low + high) / 2
        less = (noisy(middle) - images).flatten(1).norm(dim=1) < norms
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return noisy(low)
