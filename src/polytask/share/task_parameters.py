"""A parameter for each task, of which each example of a batch gets its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from polytask.share._select import one_hot, single_task
from polytask.share._sharing import attribute


class TaskParameters(nn.Module):
    """Parameters of one shape, ``(*shape)``, one for each task.

    Called with a tensor whose first dimension is that of the batch, it gives each example its task's: ``(*shape)`` where all
    have the same task, else ``(N, 1, ..., *shape)``, which broadcasts against ``(N, ..., *shape)``.

    Args:
        start: what each begins with, by task; copied.
    """

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tasks: tuple[str, ...] = ()
        self.add(start)

    def add(self, start: Mapping[str, Tensor]) -> None:
        """Add parameters of further tasks, which begin with ``start``; copied."""
        self.tasks = (*self.tasks, *start)
        for task, value in start.items():
            self.register_parameter(attribute(task), nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        if (task := single_task(self.tasks)) is not None:
            return self[task].to(x.dtype)
        every = torch.stack([self[task] for task in self.tasks])
        mine = one_hot(x, self.tasks) @ every.flatten(1).to(x.dtype)
        shape = every.shape[1:]
        return mine.view(len(x), *[1] * (x.dim() - 1 - len(shape)), *shape)

    def __getitem__(self, task: str) -> nn.Parameter:
        parameter: nn.Parameter = getattr(self, attribute(task))  # a tensor while `torch.func.functional_call` runs
        return parameter

    def of(self, task: str) -> Iterator[nn.Parameter]:
        """The task's parameter, or none for a task that is not known."""
        return iter([self[task]] if task in self.tasks else [])
