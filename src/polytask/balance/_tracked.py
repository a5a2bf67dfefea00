"""Balancers that step along running means of the task gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balance._balancer import GradientBalancer
from polytask.balance.engine.task_gradients import TaskGradients
from polytask.errors import InputError


class Memory(nn.Module):
    """A tensor ``(K, p)`` for each block of parameters, made of zeros when first asked for; a state dict brings its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def block(self, number: int, like: Tensor) -> Tensor:
        name = f"block{number}"
        if name not in self._buffers:
            # Running means of half precision would not move.
            kind = torch.promote_types(like.dtype, torch.float32)
            self.register_buffer(name, torch.zeros(self.count, like.shape[1], dtype=kind, device=like.device))
        self.register_buffer(name, self.get_buffer(name).to(like.device))
        return self.get_buffer(name)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self._buffers.clear()
        for name, value in state_dict.items():
            if name.startswith(prefix + "block"):
                self.register_buffer(name.removeprefix(prefix), torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)


class TrackingBalancer(GradientBalancer):
    """A balancer that tracks the task gradients, ``y_k = (1 - r) y_k + r g_k``, and steps along a weighted sum of them.

    ``y_k`` starts at 0 and is divided by the sum of the weights that ``g_k`` of all steps have in it, so that it is a mean
    of them from the first step on. It is kept in single precision or better, ``(K, P)`` for ``P`` shared parameters, and is
    part of the ``state_dict``. A task that is absent from a step keeps its own as it is.
    """

    steps: Tensor
    mass: Tensor

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        if not tasks:
            name = type(self).__name__
            raise InputError(
                f"{name} tracks the gradient of each task: give the model an attribute 'tasks' with their names"
            )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mass", torch.zeros(len(tasks), dtype=torch.float64))
        self.memory = Memory(len(tasks))

    @abstractmethod
    def rate(self, step: int) -> float:
        """``r`` of a step, in (0, 1]; they are counted from 1."""

    @abstractmethod
    def weigh(self, gramian: Tensor, at: list[int], step: int) -> Tensor:
        """The weights of the tracked gradients of the tasks with the numbers ``at``, ``(m,)``, by their Gramian."""

    def settle(self, gradients: TaskGradients) -> None:
        names = list(gradients.losses)
        if not names:
            return
        if not bool(gradients.gramian().isfinite().all()):
            # An overflow, which the loss scaler has to find in the gradients, and which must not be remembered.
            gradients.write(torch.ones(len(names)))
            return
        at = [self.tasks.index(name) for name in names]
        self.steps += 1
        step = int(self.steps)
        rate = self.rate(step)
        self.mass[at] += rate * (1 - self.mass[at])
        rates = rate / self.mass[at][:, None]
        gramian = torch.zeros(len(at), len(at), dtype=torch.float64)
        for block, (_, grads) in enumerate(gradients.blocks()):
            tracked = self.memory.block(block, grads)
            rows = tracked[at].lerp(grads.to(tracked) / gradients.scale, rates.to(tracked))
            tracked[at] = rows
            gramian += (rows @ rows.T).double().cpu()
        weights = self.weigh(gramian, at, step)

        def combine(grads: Tensor, block: int) -> Tensor:
            rows = self.memory.block(block, grads)[at]
            return (weights.to(rows) @ rows).to(grads)

        gradients.write_blocks(combine)
