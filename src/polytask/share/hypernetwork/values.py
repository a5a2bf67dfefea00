"""Numbers as a hypernetwork's condition: values that are given, or noise that is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.share.hypernetwork.contexts import Context, Source


@dataclass(frozen=True)
class Values(Context):
    """Numbers that are given with each forward pass: a strength, a hyperparameter, weights of losses, a one-hot vector.

    ``hypernetwork(x, values)`` takes ``(width,)`` for the whole batch, or ``(N, width)``; a number where the width is 1.

    Args:
        width: how many numbers; 1 by default.
    """

    kind: ClassVar[str] = "task-conditioned"
    square: ClassVar[float] = 1 / 3  # of numbers that are even in [0, 1]
    width: int = 1

    def build(self, components: int) -> Source:
        self.refuse(components)
        return Given(self.width)


class Given(Source):
    """Checks the shape of values, and hands them on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.like: Tensor

    def vectors(self, condition: Any) -> Tensor:
        if condition is None:
            raise InputError(f"no condition is given, expected values of shape ({self.width},) or (N, {self.width})")
        values = torch.as_tensor(condition, device=self.like.device)
        values = values if values.is_floating_point() else values.to(self.like.dtype)
        rows = values.reshape(1, 1) if values.dim() == 0 else values[None] if values.dim() == 1 else values
        if rows.dim() != 2 or rows.shape[1] != self.width:
            raise InputError(f"values of shape {tuple(values.shape)}, expected ({self.width},) or (N, {self.width})")
        return rows


@dataclass(frozen=True)
class Noise(Context):
    """``z ~ N(0, I)``, drawn anew in each forward pass: a distribution over networks.

    ``hypernetwork.each(x, 20)`` runs 20 of them. A loss of the outputs alone lets the generator learn to ignore ``z``, so
    that all are one network: see `polytask.share.hypernetwork.Spread`.

    Args:
        width: of ``z``; 8 by default.
        members: networks that run in a forward pass; above 1 the output is ``(N, members, ...)``, an ensemble in a
            `polytask.Model`.
    """

    kind: ClassVar[str] = "noise-conditioned"
    width: int = 8
    members: int = 1

    def build(self, components: int) -> Source:
        self.refuse(components)
        return Drawn(self.width, self.members)


class Drawn(Given):
    """Draws values, unless they are given."""

    def __init__(self, width: int, members: int) -> None:
        super().__init__(width)
        self.members = members

    def vectors(self, condition: Any) -> Tensor:
        """As many as ``condition`` says; or those that it gives, ``(C, width)``."""
        if condition is None or isinstance(condition, int):
            count = self.members if condition is None else condition
            return torch.randn(count, self.width, device=self.like.device, dtype=self.like.dtype)
        return super().vectors(condition)
