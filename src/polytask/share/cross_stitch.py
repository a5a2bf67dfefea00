"""Cross-stitch networks: columns of layers that exchange linear combinations of what they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.share._columns import ColumnsPathway, Fusion, shares
from polytask.share._sharing import Pathway, Sharing, sharings


@sharings.add("cross_stitch")
@dataclass(frozen=True)
class CrossStitch(Sharing):
    """A column of layers for each task; after each layer every column goes on with a linear combination of all.

    ``z_k = relu(W_k h_k + b_k)`` and ``h_k' = sum_j a_kj z_j``, on the encoder's features as every column's first ``h``
    (Misra et al., *Cross-stitch networks for multi-task learning*, CVPR 2016, Eq. 1). The ``a`` are learned, one unit of
    ``K x K`` numbers for each layer, or for each channel of it.

    The columns of a pass read one input, as in the paper; where each task has inputs of its own, all columns read those of
    the task whose pass it is. All of them run for any one task.

    Args:
        layers: of each column.
        same: what ``a_kk`` begins with; 0.9 does best in the paper. The others begin with what is left to 1, in equal parts:
            with two tasks the paper's 0.1. At 1 the columns begin as networks that do not know one another.
        per_channel: whether each channel has a unit of its own.

    Two deviations: the paper starts its columns from networks trained for each task, and trains the units with a larger
    learning rate than the layers. Two layers are our default.
    """

    name: ClassVar[str] = "cross_stitch"
    layers: int = 2
    same: float = 0.9
    per_channel: bool = False

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise InputError(f"cross_stitch: {self.layers} layers, expected at least 1")

    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        start = shares(len(tasks), self.same)
        if self.per_channel:
            start = start[..., None].expand(-1, -1, width)
        return ColumnsPathway(width, tasks, [Stitch(tasks, list(start)) for _ in range(self.layers)])


class Stitch(Fusion):
    """A cross-stitch unit; weights ``(K)`` or ``(K, width)`` for each task."""

    def forward(self, columns: Tensor, tasks: Sequence[str]) -> Tensor:
        unit = self.stacked(tasks).to(columns.dtype)
        return torch.einsum("kj,jnw->knw" if unit.dim() == 2 else "kjw,jnw->knw", unit, columns)
