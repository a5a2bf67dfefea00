"""Aggregators and weightings of the library torchjd, as balancers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balance._balancer import GradientBalancer
from polytask.balance.engine.task_gradients import TaskGradients
from polytask.errors import InputError


class TorchJD(GradientBalancer):
    """A method of torchjd, given as its own object; `polytask.fit` takes such an object as it is.

    What torchjd finds from the Gramian is given polytask's; only what needs the whole Jacobian, ``(K, P)``, gets that. Rows
    are the tasks in the step, in the order of the losses.

    Args:
        method: a ``torchjd.aggregation`` aggregator, or weighting.

    Raises:
        InputError: when ``method`` is neither.
    """

    scale = "own"

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        kinds = _kinds(method)
        if not {"Aggregator", "Weighting"} & kinds:
            raise InputError(f"balance is a {type(method).__name__}, expected a name, a Balancer, or a torchjd aggregator")
        self.method: Any = method
        gramian = method if "_GramianWeighting" in kinds else getattr(method, "gramian_weighting", None)
        self.from_gramian: Any = gramian
        self.holds = gramian is None
        self.gives_weights = "Weighting" in kinds

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        if hasattr(self.method, "reset"):
            self.method.reset()

    def settle(self, gradients: TaskGradients) -> None:
        losses: Mapping[str, float] = gradients.losses
        if not losses:
            return
        if self.from_gramian is not None:
            gradients.write(self.from_gramian(gradients.gramian()).detach())
            return
        found: Tensor = self.method(gradients.jacobian()).detach()
        if self.gives_weights:
            gradients.write(found)
            return
        pieces = torch.split(found, [p.numel() for p in gradients.shared])
        gradients.write_blocks(lambda _, block: pieces[block])


def _kinds(method: object) -> set[str]:
    return {kind.__name__ for kind in type(method).__mro__ if kind.__module__.split(".")[0] == "torchjd"}
