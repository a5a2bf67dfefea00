"""What a rule of merging is: a pure function of chunks, and the statistics that it needs first."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.measured import Measured
from polytask.register import Register

PerModel: TypeAlias = float | Sequence[float]
"""One number for all models, or one for each."""


def magnitudes(chunk: Chunk) -> Tensor:
    """The absolute values of a chunk's rows, ``(K, n)``, in its scratch room."""
    return torch.abs(chunk.rows, out=chunk.scratch)


def rows(chunk: Chunk) -> Tensor:
    """A chunk's rows, ``(K, n)``."""
    return chunk.rows


@dataclass(frozen=True)
class Cuts:
    """A statistic: for each model where its values are cut so that so many are above, a list of `Cut` by model.

    Args:
        name: the key in ``chunk.found``.
        counts: from the number of values to how many are to be above each cut, for each model.
        values: what is ordered, ``(K, n)``. It may use statistics that are declared before this one.
        scope: the values of one tensor, or those of all tensors together.
        signed: whether the values themselves are ordered, none of which is -0 then, or their magnitudes.
    """

    name: str
    counts: Callable[[int], Sequence[Sequence[int]]]
    values: Callable[[Chunk], Tensor] = rows
    scope: Literal["tensor", "model"] = "tensor"
    signed: bool = False


@dataclass(frozen=True)
class Products:
    """A statistic: the inner products of a tensor's rows, ``(K, K)``, float64; pieces of them in the merge's precision."""

    name: str


@dataclass(frozen=True)
class Prepared:
    """A statistic: what is made once of what was measured of a tensor, and held while the tensor is merged.

    Args:
        name: the key in ``chunk.found``.
        make: from what was measured of the models, and the tensor's name.
    """

    name: str
    make: Callable[[Measured, str], Any]


Statistic: TypeAlias = Cuts | Products | Prepared


class Rule(ABC):
    """One way of merging; a frozen dataclass whose fields are its settings.

    Attributes:
        vectors: whether rows are task vectors, a model less the base, or the models' weights themselves.
        needs_base: whether it cannot do without a base model.
        needs_measured: whether it needs what was measured of each model, which then is in ``chunk.measured``.
        cut: where a tensor may be cut into chunks: at any ``"element"``, at a ``"row"`` of its last dimension, or not at
            all (``"tensor"``).
        models: how many models it merges, or ``None`` for any number.
    """

    vectors: ClassVar[bool] = True
    needs_base: ClassVar[bool] = True
    needs_measured: ClassVar[bool] = False
    cut: Literal["element", "row", "tensor"] = "element"
    models: ClassVar[int | None] = None

    def statistics(self, count: int) -> Sequence[Statistic]:
        """What has to be known before any chunk of a tensor is merged, for ``count`` models, in the order of need."""
        return ()

    @abstractmethod
    def merge(self, chunk: Chunk) -> Tensor:
        """The merged elements, ``(n,)``, in the precision of the chunk."""

    def measured_shape(self, name: str, shape: tuple[int, ...], measured: Measured) -> tuple[int, ...]:
        """The shape that what was measured of a tensor of this shape must have: the same."""
        return shape

    def step(self, name: str, shape: tuple[int, ...], size: int, measured: Measured | None) -> int:
        """How many elements of a tensor a chunk has, at least 1, about ``size``, as `cut` says."""
        if self.cut == "row" and shape:
            return max(size // max(shape[-1], 1), 1) * shape[-1]
        return max(math.prod(shape), 1) if self.cut == "tensor" else size

    def beside(self, name: str, shape: tuple[int, ...], measured: Measured | None) -> int:
        """About how many bytes it holds beside a tensor's chunks while the tensor is merged."""
        return 0

    def but(self, **settings: Any) -> Rule:
        """This rule with other settings."""
        return replace(self, **settings)  # type: ignore[type-var]


def per_model(value: PerModel, count: int, setting: str) -> list[float]:
    """A number for each of ``count`` models."""
    if isinstance(value, int | float):
        return [float(value)] * count
    if len(value) != count:
        raise InputError(f"{setting} has {len(value)} numbers, expected one for each of {count} models")
    return [float(number) for number in value]


def numbers(value: PerModel) -> list[float]:
    """The numbers of a setting: one, or one for each model."""
    return [float(value)] if isinstance(value, int | float) else [float(number) for number in value]


def share(value: PerModel, setting: str) -> None:
    """Raise `InputError` unless every number is in [0, 1]."""
    for number in numbers(value):
        if not 0 <= number <= 1:
            raise InputError(f"{setting} {number:g}: expected a number from 0 to 1")


merge_rules: Register[Callable[..., Rule]] = Register("merging rule")
"""Every rule by name."""
