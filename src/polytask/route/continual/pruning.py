"""Pruning an expert when it is left: by magnitude over all of its weights, then trained on with the masks held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from polytask.errors import InputError
from polytask.route.continual._epochs import train

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Pruning:
    """Global unstructured L1 pruning by `torch.nn.utils.prune`, and fine-tuning with fixed masks.

    The defaults are those of the authors' code.

    Args:
        amount: the share of the weights of linear and convolutional layers that become 0.
        epochs: of fine-tuning.
        lr: its learning rate, of SGD.
        weight_decay: its L2 penalty.
        batch_size: of fine-tuning.
        capacity: examples of the expert's task that are kept for it.
    """

    amount: float = 0.98
    epochs: int = 200
    lr: float = 0.1
    weight_decay: float = 1e-4
    batch_size: int = 128
    capacity: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.amount < 1:
            raise InputError(f"pruning: amount {self.amount}, expected a share in [0, 1)")

    def apply(
        self, network: nn.Module, inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor], seed: int = 0
    ) -> None:
        """Prune a network, once, and train what is left on these examples.

        The parameters of a pruned layer are ``weight_orig``, the same tensor as before, and the buffer ``weight_mask``;
        further training leaves what was pruned at 0.
        """
        weights = [(module, "weight") for module in network.modules() if isinstance(module, WEIGHTED)]
        if not weights or any(prune.is_pruned(module) for module, _ in weights):
            return
        prune.global_unstructured(weights, prune.L1Unstructured, amount=self.amount)
        optimizer = torch.optim.SGD(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        train(network, inputs, targets, loss, optimizer, self.epochs, self.batch_size, seed)


def sparsity(network: nn.Module) -> float:
    """The share of zeros among the weights of linear and convolutional layers."""
    weights = [module.weight for module in network.modules() if isinstance(module, WEIGHTED)]
    zeros, count = sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)
    return zeros / count if count else 0.0
