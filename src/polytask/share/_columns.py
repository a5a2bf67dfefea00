"""A column of layers for each task, whose outputs are fused after each layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from polytask.share._experts import Bank
from polytask.share._sharing import Pathway
from polytask.share.task_parameters import TaskParameters


class Fusion(nn.Module):
    """What each column goes on with, of what all columns have; weights of one shape for each task."""

    def __init__(self, tasks: Sequence[str], start: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = TaskParameters(dict(zip(tasks, start, strict=True)))

    @abstractmethod
    def forward(self, columns: Tensor, tasks: Sequence[str]) -> Tensor:
        """``(tasks, N, width)`` for the columns of ``tasks``, of ``(K, N, width)`` for all."""

    def stacked(self, tasks: Sequence[str]) -> Tensor:
        """The weights of ``tasks``, ``(tasks, ...)``."""
        return torch.stack([self.weights[task] for task in tasks])


class ColumnsPathway(Pathway):
    """As many layers of columns as there are fusions: a linear layer and ReLU for each task, then the fusion.

    Whichever tasks are asked for, all columns run, since each reads the others; the last fusion is computed for the tasks
    that are asked for alone, and its weights are all that a task has to itself.
    """

    def __init__(self, width: int, tasks: Sequence[str], fusions: Sequence[Fusion]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.layers = nn.ModuleList([Bank(len(tasks), width, width) for _ in fusions])
        self.fusions = nn.ModuleList(fusions)

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        rows = features.reshape(-1, features.shape[-1])
        columns = rows.expand(len(self.tasks), *rows.shape)
        for layer, fusion in zip(self.layers, self.fusions, strict=True):
            columns = fusion(layer(columns).relu(), tasks if fusion is self.fusions[-1] else self.tasks)
        return {task: column.reshape(features.shape) for task, column in zip(tasks, columns, strict=True)}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.layers.parameters()
        yield from self.fusions[:-1].parameters()

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        last = self.fusions[-1]
        assert isinstance(last, Fusion)
        return last.weights.of(task)


def shares(tasks: int, same: float) -> Tensor:
    """``(tasks, tasks)``: ``same`` on the diagonal, and in equal parts what is left to 1 beside it."""
    return torch.full((tasks, tasks), (1 - same) / max(tasks - 1, 1)).fill_diagonal_(same)
