"""Experts and the selector that sends each input to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.route.continual._epochs import train
from polytask.route.dispatch import dispatch


class RoutedExperts(nn.Module):
    """Each input through the one expert that the selector finds most likely.

    Called with ``(N, ...)`` it gives what the experts give, ``(N, C)``; `choose` gives the experts, and `classes` the labels
    over all experts, ``prediction + C * expert``, which are class-incremental ones where experts came in the tasks' order.

    Args:
        experts: networks with outputs of one shape.
        selector: from inputs to ``(N, experts)``; not needed where there is one expert, or where experts are given.
    """

    def __init__(self, experts: Sequence[nn.Module], selector: nn.Module | None = None) -> None:
        super().__init__()
        if not experts:
            raise InputError("routed experts: none, expected at least one")
        self.experts = nn.ModuleList(experts)
        self.selector = selector

    def choose(self, inputs: Tensor) -> Tensor:
        """The expert of each input, ``(N,)``."""
        if self.selector is None:
            if len(self.experts) > 1:
                raise InputError(f"routed experts: {len(self.experts)} and no selector, expected fit_selector first")
            return torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
        scores: Tensor = self.selector(inputs)
        return scores[:, : len(self.experts)].argmax(1)

    def forward(self, inputs: Tensor, chosen: Tensor | None = None) -> Tensor:
        chosen = self.choose(inputs) if chosen is None else chosen
        if not len(inputs):
            nothing: Tensor = self.experts[0](inputs)
            return nothing
        return dispatch(inputs, chosen, list(self.experts))

    def classes(self, inputs: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The class of each input among those of all experts, ``(N,)``."""
        chosen = self.choose(inputs) if chosen is None else chosen
        logits: Tensor = self(inputs, chosen)
        return logits.argmax(1) + logits.shape[1] * chosen


def fit_selector(
    selector: nn.Module,
    samples: Sequence[tuple[Tensor, int]],
    *,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seed: int = 0,
    optimizer: Any = None,
) -> nn.Module:
    """Train a network to tell from an input which expert was active when it was seen; it is left in evaluation mode.

    Args:
        selector: from inputs to at least as many outputs as there are experts.
        samples: inputs and experts, as `TAME.samples` gives them.
        epochs, batch_size, lr, momentum, weight_decay: of SGD; by default as in TAME's experiments on MNIST.
        seed: of the order of the samples.
        optimizer: one that is made already, in place of SGD.
    """
    if not samples:
        raise InputError("selector: no samples, expected some batches of the stream first")
    inputs, experts = torch.stack([one for one, _ in samples]), torch.tensor([expert for _, expert in samples])
    experts = experts.to(inputs.device)
    made = optimizer or torch.optim.SGD(selector.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    train(selector, inputs, experts, F.cross_entropy, made, epochs, batch_size, seed)
    return selector.eval()
