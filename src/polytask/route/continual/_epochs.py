"""Training on examples that were kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def train(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    seed: int,
) -> None:
    """Some epochs over the examples, in an order that ``seed`` draws anew for each; the network is left in training mode."""
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(targets), generator=generator).split(batch_size):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss(network(inputs[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
