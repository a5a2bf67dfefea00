"""What a balancer keeps of each task from step to step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from polytask.balance._balancer import Balancer, Evaluate
from polytask.balance.engine.passes import Backward
from polytask.errors import InputError, TrainingError

Places = list[int] | slice
"""Where tasks stand among all; a slice where it is all of them in their order, as views are quicker than copies."""


class PerTask(Balancer):
    """A balancer that keeps something of each task, and the same in all processes."""

    processes: ProcessGroup | None = None

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        if not tasks:
            name = type(self).__name__
            raise InputError(f"{name} keeps something of each task: give the model an attribute 'tasks' with their names")

    def step(
        self,
        batches: Sequence[Evaluate],
        shared: Sequence[nn.Parameter],
        backward: Backward,
        processes: ProcessGroup | None = None,
    ) -> None:
        self.processes = processes
        try:
            super().step(batches, shared, backward, processes)
        finally:
            self.processes = None

    def places(self, names: Iterable[str]) -> Places:
        """Where these tasks stand among all."""
        names = tuple(names)
        return slice(None) if names == self.tasks else [self.tasks.index(name) for name in names]

    def agree(self, values: Mapping[str, Tensor]) -> tuple[Places, Tensor]:
        """The places of tasks and their numbers, ``(K,)``: means over the processes that have the task.

        Every process has to take part, also one without any task.
        """
        places = self.places(values)
        if self.processes is None:
            return places, torch.stack(tuple(values.values())).detach().float()
        numbers = [value.detach().float() for value in values.values()]
        device = numbers[0].device if numbers else torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        table = torch.zeros(2, len(self.tasks), device=device)
        if numbers:
            table[:, places] = torch.stack([torch.stack(numbers), torch.ones(len(numbers), device=device)])
        dist.all_reduce(table, group=self.processes)
        at = table[1].nonzero().flatten().tolist()
        return at, table[0, at] / table[1, at]


class Learned(nn.Module):
    """A number for each task that a method learns by itself, with Adam (Kingma and Ba, ICLR 2015), at its own rate.

    An entry moves, and its moments decay, only in steps that have its task.

    Args:
        start: the numbers at the start, ``(K,)``.
        lr: the learning rate.
        decay: is added to the gradient times the number, as ``torch.optim.Adam`` does with ``weight_decay``.
    """

    value: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, start: Tensor, lr: float, decay: float = 0.0) -> None:
        super().__init__()
        self.lr, self.decay = lr, decay
        self.register_buffer("value", start.clone())
        for name in ("mean", "square", "steps"):
            self.register_buffer(name, torch.zeros_like(start))

    def descend(self, at: Places, gradient: Tensor) -> None:
        """One step of the entries ``at`` against their ``gradient``; one that is not finite counts as 0."""
        # Adam does not care for the scale, and squares have to be finite.
        gradient = torch.nan_to_num(gradient.to(self.value), 0, 0, 0).clamp(-1e15, 1e15) + self.decay * self.value[at]
        self.steps[at] += 1
        self.mean[at] += 0.1 * (gradient - self.mean[at])
        self.square[at] += 0.001 * (gradient.square() - self.square[at])
        mean = self.mean[at] / (1 - 0.9 ** self.steps[at])
        square = self.square[at] / (1 - 0.999 ** self.steps[at])
        self.value[at] -= self.lr * mean / (square.sqrt() + 1e-8)


def positive(names: Sequence[str], values: Tensor, method: str) -> tuple[tuple[str, ...], Tensor]:
    """The losses whose logarithm is finite, their names and ``values``: one of 0 has nothing left to gain, and is left out.

    Raises:
        TrainingError: a loss below 0.
    """
    numbers = values.tolist()
    for name, number in zip(names, numbers, strict=True):
        if number < 0:
            raise TrainingError(f"the loss of task {name!r} is {number}: {method} takes logarithms, and needs losses > 0")
    if 0 not in numbers:
        return tuple(names), values
    left = [k for k, number in enumerate(numbers) if number != 0]
    return tuple(names[k] for k in left), values[left]


def positive_setting(**settings: float) -> None:
    """Raise `InputError` unless every setting is a finite number > 0."""
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise InputError(f"{name} {value}: expected a finite number > 0")
