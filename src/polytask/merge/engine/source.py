"""What the engine reads: tensors by name, a piece at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Source(Protocol):
    """Tensors by name, of which pieces can be read; a `Checkpoint` is one."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` of a flattened tensor."""

    def release(self, name: str) -> None:
        """A hint: the tensor is not needed for a while."""


class InMemory:
    """A state dict as a source; with notes about it, if there are any."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        self.tensors, self.metadata = tensors, metadata or {}

    @property
    def entries(self) -> Mapping[str, Tensor]:
        return self.tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self.tensors[name].detach().reshape(-1)[start:stop]

    def release(self, name: str) -> None:
        pass
