"""Random sketches of task gradients: a few numbers whose inner products are, in the mean, those of the gradients."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from polytask.balance.engine.parts import Part, Rows, Scattered


class Sketch:
    """``size`` random projections ``sum_ij a_i g_ij b_j`` of the gradients on each parameter, ``a`` and ``b`` random signs.

    Sums over rows, batches, processes and parameters go through it, since it is linear. The mean product of two sketches is
    the inner product of the gradients, with a standard deviation of at most ``3 / sqrt(size)`` of the product of their norms
    (the fourth moment of a bilinear form in signs is at most 9 times its squared second).
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def of(self, part: Part, number: int, shape: torch.Size) -> Tensor:
        """The projections of the gradients on parameter ``number``, ``(m, size)``, float32 or float64."""
        kind, device = torch.promote_types(_data(part).dtype, torch.float32), _data(part).device
        rows = shape[0] if len(shape) > 1 else 1
        draw = torch.Generator().manual_seed((self.seed + 1_000_003 * number) % 2**63)
        left = _signs(rows, self.size, draw).to(device, kind)
        right = _signs(prod(shape) // rows, self.size, draw).to(device, kind)
        if isinstance(part, Rows):
            if part.flip:
                left, right = right, left
            seen = part.x.to(kind) @ right
            return torch.stack([((delta.to(kind) @ left) * seen).sum(0) for delta in part.delta])
        if isinstance(part, Scattered):
            return ((part.grads.to(kind) @ right) * left[part.rows]).sum(1)
        return torch.stack([((grads.view(rows, -1).to(kind) @ right) * left).sum(0) for grads in part.dense()])

    def gramian(self, sketches: Tensor) -> Tensor:
        """The estimated inner products, ``(K, K)``, from ``(K, size)``."""
        return sketches @ sketches.T / self.size


def _signs(count: int, size: int, draw: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count, size), generator=draw, dtype=torch.int8) * 2 - 1


def _data(part: Part) -> Tensor:
    return part.delta if isinstance(part, Rows) else part.grads
