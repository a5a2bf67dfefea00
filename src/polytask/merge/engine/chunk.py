"""What a rule sees at a time: the same piece of one tensor in every model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from polytask.merge.engine.measured import Measured


@dataclass
class Chunk:
    """Elements ``start`` to ``start + n`` of one flattened tensor, in every model.

    Attributes:
        name: of the tensor.
        shape: of the whole tensor.
        start: number of the first element.
        base: the base model's elements, ``(n,)``, or ``None`` where there is no base.
        rows: each model's elements, less the base's where the rule works on task vectors, ``(K, n)``. In the precision of
            the merge; a rule may overwrite them.
        scratch: room for as many numbers, ``(K, n)``, which the next chunk takes over.
        found: what the rule's statistics have found, by their names.
        measured: what was measured of each model, where it is given.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    base: Tensor | None
    rows: Tensor
    scratch: Tensor
    found: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured | None = None

    @property
    def width(self) -> int:
        """The length of the tensor's last dimension: rows of a chunk that is cut at rows are this long."""
        return self.shape[-1] if self.shape else 1

    def plus_base(self, delta: Tensor, scale: float = 1.0) -> Tensor:
        """The base plus ``scale`` times ``delta``, ``(n,)``."""
        return delta * scale if self.base is None else self.base.add(delta, alpha=scale)
