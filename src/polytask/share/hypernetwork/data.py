"""Data as a hypernetwork's condition: a support set, or each example itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from polytask.errors import InputError
from polytask.share.hypernetwork.contexts import Context, Contexts, Source


@dataclass(frozen=True)
class Support(Context):
    """A set of examples, by the mean of what an encoder gives of each: one network for each set.

    ``hypernetwork(x, support)`` hands ``support`` to the encoder as it is, such as a pair of inputs and labels.

    Args:
        encoder: gives ``(S, width)`` for a set of ``S``; trained with the rest.
        width: of what it gives.
    """

    kind: ClassVar[str] = "data-conditioned"
    encoder: nn.Module
    width: int

    def build(self, components: int) -> Source:
        self.refuse(components)
        return MeanOf(self.encoder)


class MeanOf(Source):
    """The mean over a set of what the encoder gives."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def vectors(self, condition: Any) -> Tensor:
        if condition is None:
            raise InputError("no condition is given, expected a support set for the encoder of the context")
        mean: Tensor = self.encoder(condition).mean(0, keepdim=True)
        return mean


@dataclass(frozen=True)
class Example(Context):
    """Each example itself, by what an encoder gives of it: a network for each example.

    Args:
        encoder: from the inputs, or from the condition if one is given, to ``(N, width)``; trained with the rest.
        width: of what it gives.
    """

    kind: ClassVar[str] = "data-conditioned"
    outputs: ClassVar[str] = "dynamic"
    encoder: nn.Module
    width: int

    def build(self, components: int) -> Source:
        self.refuse(components)
        return Encoded(self.encoder)


class Encoded(Source):
    """What the encoder gives of each example."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def vectors(self, condition: Any) -> Tensor:
        vectors: Tensor = self.encoder(condition)
        return vectors

    def forward(self, inputs: Any, condition: Any) -> Contexts:
        return Contexts(self.vectors(inputs if condition is None else condition))
