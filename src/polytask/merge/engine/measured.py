"""What was measured of each model beside its weights, such as Fisher values and Gram matrices, read in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.source import Source

PIECE = 2**20
"""Elements whose squares are added up at once: a length does not depend on how a merge cuts its chunks."""


class Shaped(Protocol):
    """What has a shape: a tensor, or what a header says of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class MeasuredSource(Source, Protocol):
    """Tensors by name, whose shapes are known before they are read; a `Checkpoint` is one, and `InMemory`."""

    @property
    def entries(self) -> Mapping[str, Shaped]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...


class Measured:
    """What was measured of each model, by the names of its tensors. Several threads may read at once.

    Args:
        sources: one for each model, in their order.

    Attributes:
        names: the tensors of which something was measured; empty ones are left out.
    """

    def __init__(self, sources: Iterable[MeasuredSource]) -> None:
        self.sources = list(sources)
        entries = self.sources[0].entries if self.sources else {}
        self.names = frozenset(name for name, entry in entries.items() if math.prod(entry.shape))
        self._lengths: dict[int, float] = {}
        self._lock = Lock()

    def check(self, models: int, names: Iterable[str]) -> None:
        """Raise `InputError` unless the same was measured of each of so many models, of no tensor but these."""
        if len(self.sources) != models:
            raise InputError(f"measured of {len(self.sources)} models, expected of each of {models} models")
        for k, source in enumerate(self.sources, 1):
            for name in sorted(source.entries.keys() ^ self.sources[0].entries.keys()):
                if name in source.entries:
                    raise InputError(f"measured of model {k}: tensor {name!r} is not in every set, expected the same in all")
                raise InputError(f"measured of model {k}: no tensor {name!r}, which was measured of the first model")
        if odd := sorted(self.names.difference(names)):
            raise InputError(
                f"measured of tensor {odd[0]!r}: expected a tensor that is merged; take it out of what was measured, as "
                "where tied weights are stored by another name"
            )

    def check_shape(self, name: str, expected: tuple[int, ...]) -> None:
        """Raise `InputError` unless what was measured of a tensor has this shape."""
        for k, source in enumerate(self.sources, 1):
            if (shape := tuple(source.entries[name].shape)) != expected:
                raise InputError(f"measured of model {k}: tensor {name!r}: shape {list(shape)}, expected {list(expected)}")

    def at(self, k: int, name: str, start: int, stop: int) -> Tensor | None:
        """Elements ``start`` to ``stop`` of what was measured of a tensor of model ``k``, from 0, as they are stored.

        ``None`` where nothing was measured of the tensor.
        """
        return self.sources[k].read(name, start, stop) if name in self.names else None

    def whole(self, k: int, name: str) -> Tensor:
        """All that was measured of a tensor of model ``k``, from 0, in its shape, float64.

        Raises:
            InputError: a value is not finite.
        """
        source = self.sources[k]
        found = source.read(name).view(source.entries[name].shape).to("cpu", torch.float64)
        low, high = torch.aminmax(found)
        if not (low > -torch.inf and high < torch.inf):
            raise InputError(f"measured of model {k + 1}: tensor {name!r}: expected finite values")
        return found

    def length(self, k: int) -> float:
        """The norm of all that was measured of model ``k``, from 0, as one vector; it is read for it once."""
        with self._lock:
            if k not in self._lengths:
                self._lengths[k] = math.sqrt(math.fsum(self._squares(self.sources[k])))
            return self._lengths[k]

    def _squares(self, source: MeasuredSource) -> Iterable[float]:
        for name in sorted(self.names):
            total = math.prod(source.entries[name].shape)
            for start in range(0, total, PIECE):
                values = source.read(name, start, min(start + PIECE, total)).to("cpu", torch.float64)
                yield float(np.square(values.numpy()).sum())
            source.release(name)

    def release(self, name: str) -> None:
        """A hint: what was measured of a tensor is not needed for a while."""
        for source in self.sources if name in self.names else ():
            source.release(name)
