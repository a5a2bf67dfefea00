"""What every way of sharing is: settings that build the pathway between a shared encoder and the tasks' heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from torch import Tensor, nn

from polytask.register import Register


class Pathway(nn.Module):
    """Leads the encoder's features to each task's head."""

    @abstractmethod
    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Features ``(..., width)`` for each of ``tasks``; computes nothing that only other tasks need."""

    @abstractmethod
    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that every task uses."""

    @abstractmethod
    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """The parameters that only ``task`` uses."""


class Sharing(ABC):
    """A way of sharing, as plain settings (a frozen dataclass): `build` makes the modules.

    Attributes:
        name: its name in the register, on the command line and in saved models.
    """

    name: ClassVar[str]

    @abstractmethod
    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        """New modules for features of ``width`` and the named tasks."""

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that build these settings again, as JSON values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


sharings: Register[Callable[..., Sharing]] = Register("way of sharing")
"""Every way of sharing by name; each value, called without arguments, gives the method with the defaults of its paper."""
