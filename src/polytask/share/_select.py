"""Each example's own parameters, out of one set for each task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytask.errors import InputError, suggest
from polytask.scope import current, task_index


def single_task(tasks: Sequence[str]) -> str | None:
    """The task of the whole batch, or ``None`` for a batch that mixes tasks and where compiled code has to serve any task.

    Exported code is for the task in whose scope it is exported.
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return None
    scope = current()
    if scope is None or scope.index is not None or len(scope.names) != 1:
        return None
    (name,) = scope.names
    if name not in tasks:
        raise InputError(f"the task scope names {name!r}: {suggest(name, tasks)}")
    return name


def one_hot(x: Tensor, tasks: Sequence[str]) -> Tensor:
    """Which task each example of ``x`` belongs to: ``(N, K)`` in the dtype of ``x``."""
    index = task_index(x, tasks)
    return (index[:, None] == torch.arange(len(tasks), device=x.device)).to(x.dtype)
