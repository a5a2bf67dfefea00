"""Modules that learn the task from the task scope, wherever in an encoder they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import nn


class TaskDependent(nn.Module, ABC):
    """A module whose output depends on the task scope: an encoder that has one has features of its own for each task.

    Attributes:
        by_task: false for a module that does the same for all tasks after all.
    """

    by_task: ClassVar[bool] = True

    @abstractmethod
    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        """The parameters that only ``task`` uses, none for a task that is not known; all others are shared."""


def task_dependent(model: nn.Module) -> Iterator[TaskDependent]:
    """The modules of ``model`` that depend on the task."""
    return (module for module in model.modules() if isinstance(module, TaskDependent) and module.by_task)
