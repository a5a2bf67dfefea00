"""Functions of several heads: one learned representation for all tasks, a linear head for each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class MultiHead(nn.Module):
    """``f_i(x) = phi(x)' w_i``, with ``phi`` any encoder; the class of functions over which GFUCB is optimistic.

    Args:
        encoder: from inputs ``(N, ...)`` of context and action to features ``(N, k)``.
        tasks: how many heads, ``M``. They are one linear layer without bias.
        width: ``k``, when the encoder has no attribute ``width``.
    """

    def __init__(self, encoder: nn.Module, tasks: int, width: int | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.Linear(int(encoder.width if width is None else width), tasks, bias=False)  # type: ignore[arg-type]

    @property
    def count(self) -> int:
        """How many tasks."""
        return self.heads.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """The value of each input for every task, ``(N, M)``."""
        values: Tensor = self.heads(self.encoder(inputs))
        return values

    def of(self, inputs: Tensor, tasks: Tensor) -> Tensor:
        """The value of each input for its own task, ``(N,)``; tasks ``(N,)``, from 0."""
        features = self.encoder(inputs)
        return torch.einsum("nk,nk->n", features, self.heads.weight[tasks])

    def losses(self, batch: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
        """Squared errors by task over the rows of the batch, all tasks': their sum is the joint mean squared error.

        The targets are ``{"task": (N,), "reward": (N,)}``. A task without rows counts 0.
        """
        inputs, targets = batch
        squares = (self.of(inputs, targets["task"]) - targets["reward"]).square()
        each = squares.new_zeros(self.count).index_add(0, targets["task"], squares) / len(squares)
        return {str(i): loss for i, loss in enumerate(each.unbind())}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.encoder.parameters()


def mlp(inputs: int, hidden: int = 64, width: int = 10) -> nn.Module:
    """An encoder of two layers, ReLU and tanh last: ``(N, inputs)`` -> ``(N, width)``."""
    encoder = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Tanh())
    encoder.width = width  # type: ignore[assignment]
    return encoder


def convolutional(width: int = 10, hidden: int = 128) -> nn.Module:
    """An encoder of images ``(N, 1, 28, 28)``: two 3x3 convolutions of 32 and 64 channels, pooled, two dense layers.

    The paper's own network is not known in its layers: this is what its kind has.
    """
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * 12 * 12, hidden), nn.ReLU(), nn.Linear(hidden, width)),
    )
    encoder.width = width  # type: ignore[assignment]
    return encoder
