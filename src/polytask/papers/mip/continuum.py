"""Training one hypernetwork for a continuum of conditions: each batch is seen at values that are drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.model import Model
from polytask.share.hypernetwork import HyperNetwork

LossesAt: TypeAlias = Callable[[Callable[[Any], Any], Any, Tensor], dict[str, Tensor]]
"""``losses(run, batch, values)``: the losses by name of a batch at ``values``; ``run(inputs)`` is the network there."""


class Continuum(nn.Module):
    """A hypernetwork and its losses at any values, as `polytask.fit` takes them (`polytask.model.Losses`).

    Args:
        network: with the context ``Values``.
        losses: what to train it for.
        draw: gives the values of a batch, ``(width,)``.
    """

    def __init__(self, network: HyperNetwork, losses: LossesAt, draw: Callable[[], Tensor]) -> None:
        super().__init__()
        self.network, self.losses_at, self.draw = network, losses, draw

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch, at one draw of values."""
        values = self.draw()
        return self.losses_at(partial(self.network, condition=values), batch, values)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters: every value uses every one."""
        return self.parameters()


def over_loss_weights(network: HyperNetwork) -> Continuum:
    """One network for every way to weigh the tasks' losses: a whole front of trade-offs in one training run.

    The weights ``w`` are the condition, even on the simplex; each task's loss is taken ``K w_k`` times, for ``K`` tasks.

    Args:
        network: its target is a `polytask.Model`, and its context is ``Values(K)``, a weight for each of the model's tasks
            in their order. ``network.network(w)`` is the model for the weights ``w``.
    """
    model = network.target
    if not isinstance(model, Model):
        raise InputError(f"the target is {type(model).__name__}, expected a polytask.Model, whose losses are weighed")

    def losses(run: Callable[[Any], Any], batch: Any, weights: Tensor) -> dict[str, Tensor]:
        inputs, targets = batch
        outputs = run(inputs)
        by_task = dict(zip(model.tasks, len(weights) * weights, strict=True))
        return {name: by_task[name] * model.tasks[name].loss(outputs[name], target) for name, target in targets.items()}

    simplex = torch.distributions.Dirichlet(torch.ones(len(model.tasks)))
    return Continuum(network, losses, lambda: simplex.sample())
