"""Task weights learned on held-out batches: what a step along the weighted losses would do for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from polytask.balance._balancer import Evaluate
from polytask.balance._per_task import PerTask
from polytask.balance.engine.passes import Backward
from polytask.balance.perturb import restored

Gradients = list[Tensor]
"""A tensor for each parameter."""


class BilevelWeighting(PerTask):
    """A balancer that learns task weights from the losses of held-out batches.

    `polytask.training.fit` gives it one held-out batch for each training batch, from ``held_out``. Without `fit` the
    training batch is its own held-out batch; and where it cannot be evaluated again, as in `backward`, which is given losses
    alone, there is no looking ahead: held-out gradients are those at the parameters as they are.

    Batches are evaluated in training mode, so running statistics of normalisation layers count these passes too.

    Args:
        held_out: data to learn the weights on, of any kind that `fit` trains on; by default further batches of the training
            data, as in the papers. Data that the model is not trained on tell more of what generalises.
    """

    def __init__(self, held_out: Any = None) -> None:
        super().__init__()
        self.held_out = held_out
        self.watched: Evaluate | None = None

    def watch(self, evaluate: Evaluate | None) -> None:
        """Learn from the losses of the held-out batches that ``evaluate`` takes, the next one at each call."""
        self.watched = evaluate

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], backward: Backward) -> None:
        self.learn_and_go(losses, None, backward)

    def step(
        self,
        batches: Sequence[Evaluate],
        shared: Sequence[nn.Parameter],
        backward: Backward,
        processes: ProcessGroup | None = None,
    ) -> None:
        self.processes = processes
        try:
            for evaluate in batches:
                losses = evaluate()
                if losses:
                    self.learn_and_go(losses, evaluate, backward)
        finally:
            self.processes = None

    @abstractmethod
    def learn_and_go(self, losses: Mapping[str, Tensor], again: Evaluate | None, backward: Backward) -> None:
        """Learn the weights, and add the gradients of this batch.

        Args:
            losses: of the training batch, whose graph serves several passes.
            again: evaluates this batch again, at the parameters as they are then; ``None`` when nothing does.
            backward: runs a backward pass.
        """

    def held_out_losses(self, losses: Mapping[str, Tensor], again: Evaluate | None) -> Mapping[str, Tensor]:
        """The losses of the held-out batch at the parameters as they are now."""
        if self.watched is not None:
            return self.watched()
        return losses if again is None else again()


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> Gradients:
    """The gradient of ``loss``, zeros where it does not depend on a parameter; the graph is kept."""
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, found, strict=True)]


def dot(one: Gradients, other: Gradients) -> Tensor:
    """Their inner product over all parameters, a scalar in single precision or better."""
    return torch.stack(
        [(a * b).sum(dtype=torch.promote_types(a.dtype, torch.float32)) for a, b in zip(one, other, strict=True)]
    ).sum()


def slopes(losses: Mapping[str, Tensor], parameters: Sequence[Tensor], directions: Sequence[Gradients]) -> Tensor:
    """The derivative of each loss along each direction, ``(K, J)``: one backward pass for each loss."""
    if not directions:
        return torch.zeros(len(losses), 0)
    rows = []
    for loss in losses.values():
        grads = gradients(loss, parameters)
        rows.append(torch.stack([dot(grads, direction) for direction in directions]))
    return torch.stack(rows)


def slopes_by_difference(
    evaluate: Evaluate, names: Sequence[str], parameters: Sequence[Tensor], direction: Gradients
) -> Tensor:
    """`slopes` along one direction ``d``, ``(K,)``, from two forward passes whatever the number of tasks.

    The central difference ``(L_k(p + e d) - L_k(p - e d)) / 2e`` with ``e = 0.01 / |d|`` (Liu, Simonyan and Yang, *DARTS*,
    ICLR 2019). Both passes draw alike: dropout that differs would be all there is to see.
    """
    norm = float(dot(direction, direction).sqrt())
    if not 0 < norm < float("inf"):
        return torch.zeros(len(names), device=direction[0].device)
    devices = [p.device for p in parameters[:1] if p.device.type == "cuda"]
    ends = []
    for side in (0.01 / norm, -0.01 / norm):
        with torch.random.fork_rng(devices), restored(parameters) as move, torch.no_grad():
            move(side, direction)
            losses = evaluate()
            ends.append(torch.stack([losses[name].float() for name in names]))
    return (ends[0] - ends[1]) * (norm / 0.02)
