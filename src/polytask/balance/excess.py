"""Weights by excess risk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.balance._balancer import GradientBalancer, balancers
from polytask.balance._per_task import PerTask, Places, positive_setting
from polytask.balance.engine.task_gradients import TaskGradients
from polytask.errors import InputError

TINY = 1e-7


def excess(gradients: Tensor, squares: Tensor) -> Tensor:
    """An estimate of how far each loss is above its least: ``sum_p g_kp^2 / sqrt(S_kp + 1e-7)``, ``(K,)``.

    Args:
        gradients: of the tasks, ``(K, P)``.
        squares: ``S``, the sum of the squares of all gradients so far, these among them, ``(K, P)``.
    """
    return (gradients.square() / (squares + TINY).sqrt()).sum(1)


@balancers.add("excess")
class ExcessMTL(PerTask, GradientBalancer):
    """Weights that grow with a task's excess risk: how far its loss is above the least that it could reach.

    A task with noisy labels has a high loss but, once it has converged, no excess risk; weights by loss fall for it, and
    these do not. Excess risk is estimated from the gradient and a diagonal Hessian as AdaGrad has it, divided by what it was
    at the start, and weights follow by exponentiated gradient, ``w_k ~ w_k exp(eta e_k / e_k0)`` with a mean of 1. He, Zhou,
    Zhang and Zhao, *Robust multi-task learning with excess risks*, ICML 2024, Eqs. 6, 7 and 9. Gradients are those on the
    shared parameters, and only there do weights count: each task's own parameters get the gradient of its loss.

    The squares are as large as the gradients of all tasks, ``K`` times the shared parameters, and are kept in single
    precision in checkpoints, too.

    Args:
        step_size: ``eta``.
        warmup: steps of each task over whose mean its risk at the start is taken, while its weight stays as it is; the first
            alone in the authors' code, three epochs in their appendix.
    """

    log_weights: Tensor
    start: Tensor
    seen: Tensor

    def __init__(self, step_size: float = 0.01, warmup: int = 1) -> None:
        super().__init__()
        positive_setting(step_size=step_size)
        if warmup < 1:
            raise InputError(f"warmup {warmup}: expected at least 1")
        self.step_size = step_size
        self.warmup = warmup

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        for name in ("log_weights", "start", "seen"):
            self.register_buffer(name, torch.zeros(len(tasks)))
        self.squares: list[Tensor] = []

    def get_extra_state(self) -> dict[str, Any]:
        return {"squares": self.squares}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.squares = list(state["squares"])

    def settle(self, gradients: TaskGradients) -> None:
        if not gradients.losses:
            return
        at = self.places(gradients.losses)
        risks, squares = self._risks(gradients, at)
        if bool(risks.isfinite().all()):  # otherwise the loss scaler has to find an overflow in the gradients
            self.squares = squares
            self._learn(at, risks)
        weights = self.log_weights[at].double().softmax(0) * len(gradients.losses)
        gradients.write(weights)

    def _risks(self, gradients: TaskGradients, at: Places) -> tuple[Tensor, list[Tensor]]:
        """The excess risks of the tasks of this step, and the squares with this step's among them."""
        risks, squares = torch.zeros(len(gradients.losses), device=self.start.device), []
        for i, (parameter, rows) in enumerate(gradients.blocks()):
            rows = rows.float() / gradients.scale
            if i < len(self.squares):
                sums = self.squares[i].to(rows, copy=True)
            else:
                sums = rows.new_zeros(len(self.tasks), parameter.numel())
            sums[at] += rows.square()
            risks += excess(rows, sums[at]).to(risks)
            squares.append(sums)
        return risks, squares

    def _learn(self, at: Places, risks: Tensor) -> None:
        starting = self.seen[at] < self.warmup
        self.start[at] += torch.where(starting, risks / self.warmup, 0)
        self.seen[at] = (self.seen[at] + 1).clamp(max=self.warmup)
        relative = (risks / (self.start[at] + TINY)).clamp(max=1e6)
        self.log_weights[at] += torch.where(starting, 0, self.step_size * relative)
        self.log_weights -= self.log_weights.max()
