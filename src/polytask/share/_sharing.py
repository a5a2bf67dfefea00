"""What every way of sharing is: settings that build the pathway between a shared encoder and the tasks' heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from torch import Tensor, nn

from polytask.register import Register


class TaskModules(nn.ModuleDict):
    """A module for each task, by the task's name: ``nn.ModuleDict``, which refuses the names of its own attributes.

    A task may be called ``type``, ``values`` or ``training`` as a column of a table may; such a name has an underscore added
    where it is part of a parameter's name, and nowhere else.
    """

    def add_module(self, name: str, module: nn.Module | None) -> None:
        super().add_module(attribute(name), module)

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self.add_module(key, module)

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(attribute(key))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(attribute(key))

    def __iter__(self) -> Iterator[str]:
        return (name[:-1] if name.rstrip("_") in _ATTRIBUTES else name for name in super().__iter__())

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """The parameters of the task's module, or none for a task that has none."""
        return self[task].parameters() if task in self else iter(())

    def keys(self) -> KeysView[str]:
        return dict.fromkeys(self).keys()

    def items(self) -> ItemsView[str, nn.Module]:
        return {name: self[name] for name in self}.items()


def attribute(name: str) -> str:
    """``name`` with underscores added until no attribute of a ``ModuleDict`` has it; distinct names stay distinct."""
    return f"{name}_" if name.rstrip("_") in _ATTRIBUTES else name


_ATTRIBUTES = frozenset(attribute.rstrip("_") for attribute in dir(nn.ModuleDict()))


class Pathway(nn.Module):
    """Leads the encoder's features to each task's head."""

    @abstractmethod
    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Features ``(..., width)`` for each of ``tasks``; computes nothing that only other tasks need.

        `polytask.Model` moves the channels of dense features, ``(N, width, H, W)``, to the last dimension and back.
        """

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
