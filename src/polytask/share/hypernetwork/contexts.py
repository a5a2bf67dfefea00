"""What every kind of condition is: settings that build what makes context vectors of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from polytask.errors import InputError


class Contexts(NamedTuple):
    """The contexts of a batch.

    Attributes:
        vectors: ``(C, width)``, or ``(C, n, width)`` where each of ``n`` components has a vector of its own. One is for the
            whole batch; as many as examples are for one each.
        which: ``(N,)``, which of several contexts each example has; ``None`` in the two cases above.
    """

    vectors: Tensor
    which: Tensor | None = None


class Source(nn.Module, ABC):
    """Turns what a condition is told by into context vectors."""

    @abstractmethod
    def vectors(self, condition: Any) -> Tensor:
        """``(C, width)`` or ``(C, n, width)`` for a condition that is given, apart from any batch."""

    def forward(self, inputs: Any, condition: Any) -> Contexts:
        """The contexts of a batch of ``inputs``."""
        return Contexts(self.vectors(condition))


class Context(ABC):
    """A kind of condition, as plain settings.

    Attributes:
        kind: what conditions, in the words of Chauhan et al., *A brief review of hypernetworks in deep learning*, 2024.
        inputs: whether the contexts are ``"static"``, a fixed set, or ``"dynamic"``, made while it runs.
        outputs: ``"static"``, the same weights for all examples of a context, or ``"dynamic"``, each example's own.
        square: the mean square of a context's numbers at first, by which the generator's initial weights go.
        members: how many networks a forward pass runs on every example.
        width: how many numbers a context has.
    """

    kind: ClassVar[str]
    inputs: ClassVar[str] = "dynamic"
    outputs: ClassVar[str] = "static"
    square: ClassVar[float] = 1.0
    members: int = 1
    width: int

    @abstractmethod
    def build(self, components: int) -> Source:
        """The modules.

        Args:
            components: how many vectors each context has, one for each component; 0 for a single one. Only tasks have more.
        """

    def refuse(self, components: int) -> None:
        """`InputError` where each component would need a vector of its own."""
        if components:
            raise InputError(
                f"{type(self).__name__} has one vector for all components: expected embedding > 0 of the strategy"
            )
