"""How a context's numbers are written before the generator reads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import InputError


@dataclass(frozen=True)
class Encoding:
    """A function of a context ``(..., d)``.

    Attributes:
        encode: the function, to ``(..., d * factor)``.
        factor: how many numbers it makes of one.
        square: the mean square of what it makes, from the mean square of what it is given and ``d``.
        unit: whether it expects numbers from 0 to 1.
    """

    encode: Callable[[Tensor], Tensor]
    factor: int
    square: Callable[[float, int], float]
    unit: bool = False

    def __call__(self, values: Tensor) -> Tensor:
        if self.unit and values.device.type == "cpu" and not torch.compiler.is_compiling() and values.numel():
            low, high = values.detach().aminmax()
            if not (low >= 0 and high <= 1):
                raise InputError(f"context with values from {low:.3g} to {high:.3g}, expected 0 to 1: scale them first")
        return self.encode(values)


def cos_sin(values: Tensor) -> Tensor:
    """``[cos(pi z / 2), sin(pi z / 2)]``, all cosines first: of squared norm ``d`` for every ``z`` in ``[0, 1]^d``.

    Ortiz et al., *Magnitude invariant parametrizations improve hypernetwork learning*, ICLR 2024.
    """
    angles = math.pi / 2 * values
    return torch.cat([angles.cos(), angles.sin()], -1)


def complement(values: Tensor) -> Tensor:
    """``[z, 1 - z]``: the sum of the magnitudes is ``d`` for every ``z`` in ``[0, 1]^d``, while the norm is not constant."""
    return torch.cat([values, 1 - values], -1)


ENCODINGS: dict[str, Encoding] = {
    "none": Encoding(lambda values: values, 1, lambda square, d: square),
    "cos_sin": Encoding(cos_sin, 2, lambda square, d: 0.5, unit=True),
    "complement": Encoding(complement, 2, lambda square, d: 1 / 3, unit=True),
    "unit": Encoding(lambda values: torch.nn.functional.normalize(values, dim=-1), 1, lambda square, d: 1 / d),
}
"""Encodings by name. ``"cos_sin"`` and ``"complement"`` are for values from 0 to 1; the latter's mean square is that of even
ones. ``"unit"``, the norm 1, is for what has no bounds, such as embeddings."""
