"""The task as a hypernetwork's condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.scope import task_index
from polytask.share._select import single_task
from polytask.share.dependence import TaskDependent
from polytask.share.hypernetwork.contexts import Context, Contexts, Source
from polytask.share.hypernetwork.running import some_tensor
from polytask.share.task_parameters import TaskParameters


@dataclass(frozen=True)
class Tasks(Context):
    """The task, by a learned embedding for each: the forward pass runs in a `polytask.task_scope`, mixed batches too.

    Args:
        tasks: the tasks' names.
        width: of an embedding; 16 by default. They start as ``torch.nn.Embedding``'s, from N(0, 1).
    """

    kind: ClassVar[str] = "task-conditioned"
    inputs: ClassVar[str] = "static"
    tasks: Sequence[str]
    width: int = 16

    def build(self, components: int) -> Source:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks) or isinstance(self.tasks, str):
            raise InputError(f"tasks {self.tasks!r}: expected a list of at least one name, and no name twice")
        shape = (components, self.width) if components else (self.width,)
        return TaskEmbeddings({task: torch.randn(shape) for task in self.tasks})


class TaskEmbeddings(Source, TaskDependent):
    """An embedding for each task; only the task's own loss trains it."""

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.embeddings = TaskParameters(start)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.embeddings.tasks

    def vectors(self, condition: Any) -> Tensor:
        """Of a task or several, by their names; of all by default."""
        names = self.tasks if condition is None else [condition] if isinstance(condition, str) else list(condition)
        for name in names:
            if name not in self.tasks:
                raise InputError(f"unknown task {name!r}: {suggest(name, self.tasks)}")
        return torch.stack([self.embeddings[name] for name in names])

    def forward(self, inputs: Any, condition: Any) -> Contexts:
        if condition is not None:
            return Contexts(self.vectors(condition))
        if (task := single_task(self.tasks)) is not None:
            return Contexts(self.vectors(task))
        present, which = torch.unique(task_index(some_tensor(inputs), self.tasks), return_inverse=True)
        names = [self.tasks[i] for i in present.tolist()] or self.tasks[:1]  # of a batch without examples any will do
        return Contexts(self.vectors(names), which if len(names) > 1 else None)

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.embeddings.of(task)
