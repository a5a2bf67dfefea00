"""MTAN: each task attends to the layers of a network that all tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.share._experts import rectified
from polytask.share._sharing import Pathway, Sharing, TaskModules, sharings


@sharings.add("mtan")
@dataclass(frozen=True)
class MTAN(Sharing):
    """Blocks of layers that all tasks share, and for each task a soft mask over each block's channels.

    Block ``l`` has two shared layers, whose outputs are ``u_l`` and ``p_l``; the first block reads the encoder's features.
    Task ``k`` masks ``p_l``; what is left helps, through a layer ``f_l`` that is shared too, to make the next block's mask::

        a_l = sigmoid(H_kl relu(G_kl [u_l, f_(l-1)(a_(l-1))])) * p_l

    with ``[u_1]`` alone in the first block; the last ``a`` is the task's. Liu et al., *End-to-end multi-task learning with
    attention*, CVPR 2019, section 3.2. Shared layers have ReLU after them.

    Args:
        blocks: of two shared layers each; 2 is our default, for features of an encoder.

    Two deviations, since this stands behind an encoder: all layers are linear, on dense features 1x1 convolutions, where
    the paper's shared ones are 3x3; and nothing normalises over the batch, so that a row never depends on those beside it.
    """

    name: ClassVar[str] = "mtan"
    blocks: int = 2

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise InputError(f"mtan: {self.blocks} blocks, expected at least 1")

    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        return MTANPathway(width, tasks, self.blocks)


class MTANPathway(Pathway):
    """The shared blocks, and each task's attention beside them."""

    def __init__(self, width: int, tasks: Sequence[str], blocks: int) -> None:
        super().__init__()
        self.first = nn.ModuleList([rectified(width, width) for _ in range(blocks)])
        self.second = nn.ModuleList([rectified(width, width) for _ in range(blocks)])
        self.onward = nn.ModuleList([rectified(width, width) for _ in range(blocks - 1)])
        self.attention = TaskModules({task: Attention(width, blocks) for task in tasks})

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        shared = []
        for first, second in zip(self.first, self.second, strict=True):
            middle = first(features).relu()
            features = second(middle).relu()
            shared.append((middle, features))
        return {task: self.attention[task](shared, self.onward) for task in tasks}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        for layers in (self.first, self.second, self.onward):
            yield from layers.parameters()

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.attention.parameters_of(task)


class Attention(nn.Module):
    """One task's masks, one for each block."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.masks = nn.ModuleList(
            nn.Sequential(rectified(width * min(block, 2), width), nn.ReLU(), nn.Linear(width, width), nn.Sigmoid())
            for block in range(1, blocks + 1)
        )

    def forward(self, shared: Sequence[tuple[Tensor, Tensor]], onward: Sequence[nn.Module]) -> Tensor:
        """The last masked block, ``(..., width)``, of both layers of every block and what leads from block to block."""
        middle, features = shared[0]
        attended: Tensor = self.masks[0](middle) * features
        for mask, lead, (middle, features) in zip(self.masks[1:], onward, shared[1:], strict=True):
            attended = mask(torch.cat([middle, lead(attended).relu()], -1)) * features
        return attended
