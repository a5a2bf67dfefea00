"""Task weights by the hypergradients of all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.balance._balancer import Evaluate, balancers
from polytask.balance._bilevel import BilevelWeighting, gradients, slopes
from polytask.balance._per_task import Learned, positive_setting
from polytask.balance.engine.graph import leaves
from polytask.balance.engine.passes import Backward
from polytask.balance.perturb import restored
from polytask.balance.solvers import cosines, min_norm


def common(hypergradients: Tensor) -> Tensor:
    """The shortest vector in the convex hull of the rows, each brought to length 1 first: ``(J, K)`` to ``(K,)``.

    A row that vanishes has nothing to ask for and is left out.
    """
    norms = hypergradients.norm(dim=1)
    rows = (hypergradients[norms > 0] / norms[norms > 0, None]).double().cpu()
    if len(rows) == 0:
        return torch.zeros_like(hypergradients[0])
    shares = torch.from_numpy(min_norm(*cosines(rows @ rows.T)))
    combined: Tensor = shares @ rows
    return combined.to(hypergradients)


@balancers.add("moml")
class MOML(BilevelWeighting):
    """Learned weights under which a step on the training batch helps every task on a held-out batch.

    With ``p' = p - a sum_k w_k grad L_k(p)`` and ``w`` the softmax of learned logits, each task's held-out loss at ``p'``
    has a gradient by the logits; they descend along the shortest convex combination of these, each brought to length 1. Then
    the step follows the gradient of ``sum_k w_k L_k`` with the new weights. Ye et al., *Multi-objective meta learning*,
    NeurIPS 2021, for task weights as the upper level.

    One virtual step by plain gradient descent is looked ahead, whose hypergradients are ``-a grad L_k(p)^T grad L_j(p')``
    exactly: no second derivatives, but ``2 K`` backward passes and, for a while, the held-out gradients of all tasks.

    Args:
        lr: the learning rate of the logits, with Adam.
        virtual_lr: ``a``.
        held_out: data to learn the weights on, as in `BilevelWeighting`.
    """

    scale = "mean"

    def __init__(self, lr: float = 1e-3, virtual_lr: float = 0.1, held_out: Any = None) -> None:
        super().__init__(held_out)
        positive_setting(lr=lr, virtual_lr=virtual_lr)
        self.lr = lr
        self.virtual_lr = virtual_lr

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        self.logits = Learned(torch.zeros(len(tasks)), self.lr)

    def learn_and_go(self, losses: Mapping[str, Tensor], again: Evaluate | None, backward: Backward) -> None:
        found = self.hypergradients(losses, again)
        gradient = common(found) if len(found) else found.new_zeros(len(losses))
        self.logits.descend(*self.agree(dict(zip(losses, gradient, strict=True))))
        backward(self._weighted(losses))

    def hypergradients(self, losses: Mapping[str, Tensor], again: Evaluate | None) -> Tensor:
        """The derivative of each held-out loss by the logit of each task in this step, ``(J, K)``."""
        parameters = leaves(losses.values())
        with restored(parameters) as move:
            if again is not None:
                move(-self.virtual_lr, gradients(self._weighted(losses), parameters))
            directions = [gradients(loss, parameters) for loss in self.held_out_losses(losses, again).values()]
        by_weight = -self.virtual_lr * slopes(losses, parameters, directions).T
        w = self.logits.value[self.places(losses)].softmax(0).to(by_weight)
        return w * (by_weight - by_weight @ w[:, None])

    def _weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = torch.stack(tuple(losses.values()))
        return (self.logits.value[self.places(losses)].softmax(0).to(values) * values).sum()
