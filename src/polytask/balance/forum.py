"""A first-order method for task weights as the upper level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytask.balance._balancer import Evaluate, balancers
from polytask.balance._bilevel import BilevelWeighting, Gradients, dot, gradients
from polytask.balance._per_task import Learned, positive_setting
from polytask.balance.engine.graph import leaves
from polytask.balance.engine.passes import Backward
from polytask.balance.perturb import restored
from polytask.balance.solvers import Array
from polytask.errors import InputError


def shares(matrix: Array, pull: float) -> Array:
    """The ``l`` on the simplex of ``min |sum_j l_j u_j + v q|^2 / 2 - v c`` over ``l`` and ``v >= 0``, ``(J,)``.

    It is the dual of the step that gains most for the worst task while it gains ``c`` on the constraint, too. Solved
    exactly: entries join the positive ones, or leave them, one by one until the optimality conditions hold.

    Args:
        matrix: inner products of ``u``, the tasks' gradients, and last ``q``, the constraint's, all of length 1 (or 0),
            ``(J + 1, J + 1)``.
        pull: ``c >= 0``.
    """
    matrix = matrix + 1e-11 * np.eye(len(matrix))  # one minimum, also where gradients depend on one another
    linear, ones = np.zeros(len(matrix)), np.ones(len(matrix))
    linear[-1], ones[-1] = -pull, 0
    x = np.zeros(len(matrix))
    x[np.argmin(matrix.diagonal()[:-1])] = 1
    free = x.nonzero()[0]
    for _ in range(30 * len(matrix)):
        x, free = _minimum(matrix, linear, ones, x, free)
        slope = matrix @ x + linear
        short = slope - ones * (slope @ (x * ones))
        short[free] = 0
        if short.min() >= -1e-12 * max(1.0, pull):
            break
        free = np.append(free, np.argmin(short))
    on_simplex: Array = x[:-1] / x[:-1].sum()
    return on_simplex


def _minimum(matrix: Array, linear: Array, ones: Array, x: Array, free: NDArray[np.intp]) -> tuple[Array, NDArray[np.intp]]:
    """The best ``x`` with these entries free, or with those of them that stay positive on the way there."""
    while True:
        block = np.block([[matrix[np.ix_(free, free)], ones[free, None]], [ones[None, free], np.zeros((1, 1))]])
        best = np.zeros_like(x)
        best[free] = np.linalg.solve(block, np.append(-linear[free], 1.0))[:-1]
        leaving = free[best[free] <= 0]
        if len(leaving) == 0:
            return best, free
        ratios = x[leaving] / np.maximum(x[leaving] - best[leaving], 1e-300)
        x = x + min(ratios.min(), 1.0) * (best - x)
        free = free[free != leaving[np.argmin(ratios)]]
        x[np.setdiff1d(np.arange(len(x)), free)] = 0


@balancers.add("forum")
class FORUM(BilevelWeighting):
    """Held-out losses of all tasks lowered together, under the constraint that the weighted training loss is at its least.

    With ``w`` the softmax of learned logits, ``f = sum_k w_k L_k``, and ``p_T`` the parameters after ``inner`` steps of
    gradient descent on ``f``, the gap ``f(p) - f(p_T)`` is to go to 0: the lower level of a bilevel problem as a constraint,
    with ``q`` its gradient by parameters (where ``p_T`` counts as a constant) and logits. All move against
    ``sum_j l_j u_j + v q``, with ``u_j`` the gradient of task j's held-out loss at ``p``, brought to length 1, and

        ``min |sum_j l_j u_j + v q|^2 / 2 - v rho |q|^2``  over ``l`` on the simplex and ``v >= 0``,

    ``l`` smoothed over steps and ``v`` the best one for it. Ye, Lin, Cao, Zhang and Tsang, *A first-order multi-gradient
    algorithm for multi-objective bi-level optimization*, ECAI 2024. Parameters follow the held-out batch itself, so that a
    ``held_out`` set of its own is trained on, too. The gradients of all held-out tasks are in memory for a while. In the
    authors' code the square is not halved, but ``v`` is bound to be the best one for ``l``.

    Args:
        rho: how fast the constraint is to be met.
        inner: steps to ``p_T``, each a pass over the training batch.
        virtual_lr: their learning rate.
        lr: the learning rate of the logits, with Adam.
        window: steps that make an epoch ``e = 0, 1, ...`` for the smoothing, which moves ``l`` by ``(e + 1)^(-3/4)``.
        held_out: data for the upper level, as in `BilevelWeighting`.
    """

    scale = "own"
    share: Tensor
    steps: Tensor

    def __init__(
        self,
        rho: float = 0.1,
        inner: int = 5,
        virtual_lr: float = 0.1,
        lr: float = 1e-3,
        window: int = 100,
        held_out: Any = None,
    ) -> None:
        super().__init__(held_out)
        positive_setting(rho=rho, virtual_lr=virtual_lr, lr=lr)
        if inner < 1 or window < 1:
            raise InputError(f"inner {inner}, window {window}: expected at least 1")
        self.rho = rho
        self.inner = inner
        self.virtual_lr = virtual_lr
        self.lr = lr
        self.window = window

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        self.logits = Learned(torch.zeros(len(tasks)), self.lr)
        self.register_buffer("share", torch.zeros(len(tasks)))
        self.register_buffer("steps", torch.zeros(()))

    def learn_and_go(self, losses: Mapping[str, Tensor], again: Evaluate | None, backward: Backward) -> None:
        held_out = losses if self.watched is None else self.watched()
        parameters = leaves([*losses.values(), *held_out.values()])
        values = _stacked(losses, losses)
        w = self.logits.value[self.places(losses)].softmax(0).to(values)
        f = (w * values).sum()
        slope = gradients(f, parameters)
        gap = values.detach() - self._after(losses, again, parameters, slope, w)
        if not bool(gap.isfinite().all()):  # the inner steps were too long for this batch, and show nothing
            gap = torch.zeros_like(gap)
        by_logit = w * (gap - w @ gap)

        rows = [gradients(loss, parameters) for loss in held_out.values()]
        lengths = [max(float(dot(row, row).sqrt()), 1e-30) for row in rows]
        size = max(float(dot(slope, slope) + by_logit @ by_logit) ** 0.5, 1e-30)
        matrix = _products([*rows, slope], [*lengths, size])
        matrix[-1, -1] = 1
        share = self._smoothed(list(held_out), matrix, self.rho * size)
        v = max(0.0, self.rho * size - float(share @ matrix[:-1, -1])) / size
        self.logits.descend(*self.agree(dict(zip(losses, v * by_logit, strict=True))))
        steps = [s / length * loss for s, length, loss in zip(share.tolist(), lengths, held_out.values(), strict=True)]
        backward(torch.stack([v * f, *steps]).sum())

    def _after(
        self, losses: Mapping[str, Tensor], again: Evaluate | None, parameters: list[Tensor], slope: Gradients, w: Tensor
    ) -> Tensor:
        """The training losses after the inner steps, ``(K,)``."""
        if again is None:
            return _stacked(losses, losses).detach()
        with restored(parameters) as move:
            move(-self.virtual_lr, slope)
            for _ in range(self.inner - 1):
                move(-self.virtual_lr, gradients((w * _stacked(again(), losses)).sum(), parameters))
            with torch.no_grad():
                return _stacked(again(), losses)

    def _smoothed(self, names: Sequence[str], matrix: Array, pull: float) -> Array:
        """The tasks' shares of the step, ``(J,)``, in the middle of those of the steps before."""
        alike = np.full(len(names), 1 / len(names))
        # Not finite is an overflow, which the loss scaler has to find in the gradients.
        now = torch.from_numpy(shares(matrix, pull) if np.isfinite(matrix).all() else alike)
        at, agreed = self.agree(dict(zip(names, now, strict=True)))
        self.share[at] += float(self.steps // self.window + 1) ** -0.75 * (agreed.to(self.share) - self.share[at])
        self.steps += 1
        mine = self.share[self.places(names)].double().cpu().numpy()
        smoothed: Array = mine / mine.sum() if mine.sum() > 0 else alike
        return smoothed


def _stacked(losses: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    return torch.stack([losses[name] for name in names])


def _products(rows: Sequence[Gradients], lengths: Sequence[float]) -> Array:
    """Inner products of ``rows``, each divided by its length."""
    table = torch.stack([torch.stack([dot(one, other) for other in rows]) for one in rows]).double().cpu().numpy()
    with np.errstate(invalid="ignore"):
        products: Array = table / np.outer(lengths, lengths)
    return products
