"""Sharpness-aware minimisation task by task, around any balancer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from polytask.balance._balancer import Balancer, Evaluate, GradientBalancer, GramianWeighting, LossWeighting, balancers
from polytask.balance._looks import Around, Gradient, Looks, Steps, accumulate
from polytask.balance._per_task import PerTask
from polytask.balance.engine.parts import Dense
from polytask.balance.engine.passes import Backward
from polytask.balance.engine.task_gradients import TaskGradients
from polytask.balance.perturb import radius
from polytask.errors import InputError

Norm = Literal["joint", "separate"]


class Rows:
    """Gradients of ``count`` tasks, those on one parameter in one piece of memory."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.grads: dict[nn.Parameter, Tensor] = {}
        self.tasks: dict[nn.Parameter, list[int]] = {}

    def put(self, task: int, gradient: Gradient, minus: Gradient | None = None) -> None:
        """Keep the gradient of the next ``task``, less ``minus``; what it does not reach counts as 0."""
        for p, g in gradient.items():
            if p not in self.grads:
                self.grads[p], self.tasks[p] = g.new_empty((self.count, *g.shape)), []
            row = self.grads[p][len(self.tasks[p])]
            if minus is None or p not in minus:
                row.copy_(g)
            else:
                torch.sub(g, minus[p], out=row)
            self.tasks[p].append(task)

    def finite(self) -> bool:
        return all(bool(torch.linalg.vector_norm(part.grads, torch.inf).isfinite()) for part in self.parts().values())

    def parts(self) -> dict[nn.Parameter, Dense]:
        return {p: Dense(grads[: len(self.tasks[p])], tuple(self.tasks[p])) for p, grads in self.grads.items()}


class HeldGradients(TaskGradients):
    """Task gradients that are given, in the place of those that are found from losses.

    Args:
        shared: the parameters.
        losses: by task, in the order of all that follows.
        rows: the tasks' gradients, of all processes together, on some of ``shared``.
        scale: what ``rows`` are to be divided by.
        processes: those that hold the same.
    """

    def __init__(
        self,
        shared: Sequence[nn.Parameter],
        losses: Mapping[str, Tensor],
        rows: Rows,
        scale: float = 1.0,
        processes: ProcessGroup | None = None,
    ) -> None:
        super().__init__(shared, processes, hold=True)
        self.scale = scale
        self._names = list(losses)
        self._values = {name: [loss.detach()] for name, loss in losses.items()}
        parts = rows.parts()
        self._parts.update((i, [parts[p]]) for i, p in enumerate(self.shared) if p in parts)
        self._joined = True


@balancers.add("flat")
class FlatRegions(Around):
    """Each task's loss is made small, and flat around: a balancer of losses and of their sharpness, task by task.

    For each task alone: ``g_k`` at the weights, then ``g'_k`` from ``e_k = rho v / |v|`` away, where ``v`` is the
    gradient of ``L_k`` on the shared parameters and on the task's own, and only these move. To first order ``g'_k - g_k``
    is ``rho`` times the gradient of ``|g_k|``. The inner balancer ``A`` settles both parts apart: the shared parameters
    get ``A(g_1, ..., g_K) + A(g'_1 - g_1, ..., g'_K - g_K)``, each task's own the gradient found beside ``g'_k``. Phan et
    al., *Improving multi-task learning via seeking task-based flat regions*, arXiv 2211.13723. A balancer that remembers
    something does so twice, once for each part.

    A loss weighting is linear in the gradients, so that both parts are one: with ``w_k`` the slope of its combination at
    the losses as they are, all parameters get ``sum_k w_k g'_k``, own ones too as without this wrapper, and one ``g'_k``
    at a time is held. What it learns itself gets its gradient at the losses as they are. For other balancers ``g_k`` and
    ``g'_k`` of all tasks are held.

    A step takes ``1 + K`` forward and ``2 K`` backward passes for ``K`` tasks. Random layers draw the same numbers in all
    of them, running statistics of batch norms move in the first only, and the weights end with the bits that they had. A
    task whose gradient vanishes is not moved. A gradient that is not finite, before or after, ends up in ``.grad``, where
    a loss scaler finds it; a balancer of gradients is then not asked.

    Args:
        inner: a loss weighting or a balancer of gradients, or its name.
        rho: the radius; by default 0.05 (plain) or 2 (adaptive), as in the paper's code. 0 leaves just ``inner``.
        adaptive: in units of each weight: ``e = rho w^2 v / ||w| v|``. Its radii are much larger ones.
        norm: ``"joint"``, one norm for shared and own parameters together as in the paper's code, or ``"separate"``, one
            for each.
        rho_own: the radius on own parameters when norms are separate; by default ``rho``.
        split: settle the two parts apart; if not, ``A(g'_1, ..., g'_K)``.
    """

    def __init__(
        self,
        inner: str | Balancer = "equal",
        rho: float | None = None,
        adaptive: bool = False,
        norm: Norm = "joint",
        rho_own: float | None = None,
        split: bool = True,
    ) -> None:
        made = balancers[inner]() if isinstance(inner, str) else inner
        super().__init__(made)
        plain = type(made).step in (Balancer.step, PerTask.step, GradientBalancer.step)
        if not plain or not isinstance(made, LossWeighting | GradientBalancer):
            name = type(made).__name__
            raise InputError(f"{name} takes steps of its own: expected a loss weighting, or a balancer of task gradients")
        if norm not in get_args(Norm):
            raise InputError(f"norm is {norm!r}, expected one of {', '.join(map(repr, get_args(Norm)))}")
        if rho_own is not None and norm == "joint":
            raise InputError(f"rho_own is {rho_own} with one joint norm: pass norm='separate'")
        self.rho = radius("rho", (2.0 if adaptive else 0.05) if rho is None else rho)
        self.rho_own = radius("rho_own", self.rho if rho_own is None else rho_own)
        self.adaptive, self.norm, self.split = adaptive, norm, split
        self.flat = copy.deepcopy(made) if split and isinstance(made, GradientBalancer) else None

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        if self.flat is not None:
            self.flat.prepare(tasks)

    def step(
        self,
        batches: Sequence[Evaluate],
        shared: Sequence[nn.Parameter],
        backward: Backward,
        processes: ProcessGroup | None = None,
    ) -> None:
        if self.rho == 0 == self.rho_own:
            self.inner.step(batches, shared, backward, processes)
            return
        looks = Looks(
            batches, shared, backward, processes, hold="graph" if isinstance(self.inner, LossWeighting) else "each"
        )
        if not looks.names:
            return
        if isinstance(self.inner, LossWeighting):
            weights = _slopes(self.inner, looks, backward)
            for name, weight in weights.items():
                before, steps = self._look(looks, name)
                if steps:
                    looks.accumulate_again(name, steps, weight)
                else:
                    accumulate(before, weight)
        elif isinstance(self.inner, GradientBalancer):
            self._settle(self.inner, looks)

    def _look(self, looks: Looks, name: str) -> tuple[Gradient, Steps]:
        """The gradient of a task, of all processes, and the steps to where its loss is worst: none if not to be moved."""
        before = looks.gradient(name)
        return before, looks.steps(before, [name], (self.rho, self.rho_own), self.norm == "joint", self.adaptive)

    def _settle(self, inner: GradientBalancer, looks: Looks) -> None:
        shared = set(looks.shared)
        rows, after = Rows(len(looks.names)), Rows(len(looks.names))
        for k, name in enumerate(looks.names):
            before, steps = self._look(looks, name)
            found = looks.again(name, steps) if steps else before
            accumulate({p: g for p, g in found.items() if p not in shared})
            found = looks.joined({p: g for p, g in found.items() if p in shared})
            if self.flat is None:
                after.put(k, found)
            else:
                rows.put(k, {p: g for p, g in before.items() if p in shared})
                after.put(k, found, minus=before)

        def settle(balancer: GradientBalancer, rows: Rows, finite: bool) -> None:
            scale = looks.factor * len(looks.batches)
            held = HeldGradients(looks.shared, looks.losses, rows, scale, looks.processes)
            if finite:
                balancer.settle(held)
            else:
                held.write(torch.ones(rows.count))

        # A Gramian tells its balancer whether all is finite.
        finite = isinstance(inner, GramianWeighting) or after.finite()
        if self.flat is None:
            settle(inner, after, finite)
        else:
            settle(inner, rows, finite)
            settle(self.flat, after, finite)


def _slopes(inner: LossWeighting, looks: Looks, backward: Backward) -> dict[str, float]:
    """The derivative of the combined loss in each loss; parameters of the weighting get their gradients."""
    leaves = {name: loss.detach().clone().requires_grad_() for name, loss in looks.losses.items()}
    combined = inner.combine(leaves)
    if not combined.requires_grad:
        return dict.fromkeys(leaves, 0.0)
    found = torch.autograd.grad(combined, list(leaves.values()), retain_graph=True, allow_unused=True)
    if any(p.requires_grad for p in inner.parameters()):
        backward(combined * len(looks.batches))
    return {name: 0.0 if slope is None else float(slope) for name, slope in zip(leaves, found, strict=True)}
