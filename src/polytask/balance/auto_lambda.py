"""Task weights by the hypergradient of a virtual step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.balance._balancer import Evaluate, balancers
from polytask.balance._bilevel import (
    BilevelWeighting,
    gradients,
    slopes,
    slopes_by_difference,
)
from polytask.balance._per_task import Learned, positive_setting
from polytask.balance.engine.graph import leaves
from polytask.balance.engine.passes import Backward
from polytask.balance.perturb import restored
from polytask.errors import InputError, suggest


@balancers.add("auto_lambda")
class AutoLambda(BilevelWeighting):
    """Learned weights under which a step on the training batch helps the primary tasks on a held-out batch most.

    With ``p' = p - a sum_k w_k grad L_k(p)`` the weights descend on the held-out losses at ``p'``, summed over the primary
    tasks: ``d/dw_k = -a grad L_k(p)^T grad L_held_out(p')``. Then the step follows the gradient of ``sum_k w_k L_k`` with
    the new weights. Liu, James, Davison and Johns, *Auto-Lambda: disentangling dynamic task relationships*, TMLR 2022. The
    inner products are found as in the paper by a finite difference: two forward passes, whatever the number of tasks.

    In the paper ``a`` is the optimizer's learning rate, and the virtual step has its momentum; here ``a`` is a setting and
    the step is a plain one. Since the weights learn with Adam, which does not care for scale, ``a`` only decides how far
    ahead is looked. Weights are kept at 0 or more, where the authors' code lets them go below.

    Args:
        primary: the tasks whose held-out losses count; all by default.
        start: the weight of every task at the start.
        lr: the learning rate of the weights, with Adam.
        virtual_lr: ``a``.
        held_out: data to learn the weights on, as in `BilevelWeighting`.
    """

    scale = "own"

    def __init__(
        self,
        primary: Sequence[str] | None = None,
        start: float = 0.1,
        lr: float = 1e-4,
        virtual_lr: float = 1e-3,
        held_out: Any = None,
    ) -> None:
        super().__init__(held_out)
        positive_setting(start=start, lr=lr, virtual_lr=virtual_lr)
        self.primary = primary if primary is None else tuple(primary)
        self.start = start
        self.lr = lr
        self.virtual_lr = virtual_lr

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        for name in self.primary or ():
            if name not in tasks:
                raise InputError(f"primary names an unknown task {name!r}: {suggest(name, tasks)}")
        self.weights = Learned(torch.full((len(tasks),), self.start), self.lr)

    def learn_and_go(self, losses: Mapping[str, Tensor], again: Evaluate | None, backward: Backward) -> None:
        at, gradient = self.agree(dict(zip(losses, self.hypergradient(losses, again), strict=True)))
        self.weights.descend(at, gradient)
        self.weights.value.clamp_(min=0)
        backward(self._weighted(losses))

    def hypergradient(self, losses: Mapping[str, Tensor], again: Evaluate | None) -> Tensor:
        """The derivative of the primary tasks' held-out losses by the weights of the tasks in this step, ``(K,)``."""
        parameters = leaves(losses.values())
        with restored(parameters) as move:
            if again is not None:
                move(-self.virtual_lr, gradients(self._weighted(losses), parameters))
            held_out = self.held_out_losses(losses, again)
            counted = [loss for name, loss in held_out.items() if self.primary is None or name in self.primary]
            direction = gradients(torch.stack(counted).sum(), parameters) if counted else None
        if direction is None:
            return torch.zeros(len(losses), device=self.weights.value.device)
        if again is None:
            return -self.virtual_lr * slopes(losses, parameters, [direction])[:, 0]
        return -self.virtual_lr * slopes_by_difference(again, list(losses), parameters, direction)

    def _weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = torch.stack(tuple(losses.values()))
        return (self.weights.value[self.places(losses)].to(values) * values).sum()
