"""NDDR: columns of layers that are fused by a learned projection of all their channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.share._columns import ColumnsPathway, Fusion, shares
from polytask.share._sharing import Pathway, Sharing, sharings


@sharings.add("nddr")
@dataclass(frozen=True)
class NDDR(Sharing):
    """A column of layers for each task; after each layer every column goes on with a projection of the channels of all.

    ``z_k = relu(W_k h_k + b_k)`` and ``h_k' = relu(A_k [z_1; ...; z_K])``, on the encoder's features as every column's first
    ``h``: the fusion of Gao et al., *NDDR-CNN: layerwise feature fusing in multi-task CNNs by neural discriminative
    dimensionality reduction*, CVPR 2019, whose 1x1 convolution is ``A_k``, ``(width, K width)``. `CrossStitch` is the case
    of diagonal blocks, without the last ReLU; as there all columns run for any one task, and read the input of its pass.

    Args:
        layers: of each column; 2 is our default.
        same: how much of each of the column's own channels ``A_k`` takes at first; the others' have what is left to 1, in
            equal parts. 0.9, and so with two tasks 0.1 for the other, as in the paper.

    One deviation: the paper normalises over the batch behind the projection. Here nothing does, so that a row never depends
    on those beside it.
    """

    name: ClassVar[str] = "nddr"
    layers: int = 2
    same: float = 0.9

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise InputError(f"nddr: {self.layers} layers, expected at least 1")

    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        start = list(torch.kron(shares(len(tasks), self.same)[:, None], torch.eye(width)))
        return ColumnsPathway(width, tasks, [Projection(tasks, start) for _ in range(self.layers)])


class Projection(Fusion):
    """The projection of all channels; weights ``(width, K width)`` for each task."""

    def forward(self, columns: Tensor, tasks: Sequence[str]) -> Tensor:
        every = columns.transpose(0, 1).flatten(1)
        return (every @ self.stacked(tasks).to(every.dtype).mT).relu()
