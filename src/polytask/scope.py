"""The task scope: the one way in which a module inside a network learns which task each example belongs to.

>>> import torch
>>> with task_scope("left"):
...     current().names
('left',)
>>> with task_scope(["left", "right"], index=torch.tensor([0, 1, 1])):  # a mixed batch of three examples
...     current().names, current().index.tolist()
(('left', 'right'), [0, 1, 1])
>>> current() is None
True
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.errors import InputError


@dataclass(frozen=True)
class Scope:
    """Which tasks the running forward pass serves.

    Args:
        names: one name for a batch of one task; several for a mixed batch, or for a batch that every task shares.
        index: for a mixed batch, ``(N,)`` int64, the position in ``names`` of each example's task; otherwise ``None``.
    """

    names: tuple[str, ...]
    index: Tensor | None = None


class _Stack(threading.local):
    def __init__(self) -> None:
        self.scopes: list[Scope] = []


# A stack for each thread: scopes nest, and two threads that serve two tasks with one model do not see each other's.
_stack = _Stack()


class _Entered:
    """Enters a scope, any number of times: a checkpointed block runs again in each backward pass over one graph."""

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    def __enter__(self) -> None:
        if self.scope is not None:
            _stack.scopes.append(self.scope)

    def __exit__(self, *error: object) -> None:
        if self.scope is not None:
            _stack.scopes.pop()


def task_scope(names: str | Sequence[str], index: Tensor | None = None) -> contextlib.AbstractContextManager[None]:
    """Within the block, modules see that the batch belongs to ``names``. Scopes nest; the innermost counts.

    Args:
        names: the batch's task, or its tasks.
        index: for a batch that mixes tasks, ``(N,)`` integers: the position in ``names`` of each example's task.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names:
        raise InputError("a task scope of no tasks, expected at least one")
    if index is not None:
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise InputError(f"task index of shape {tuple(index.shape)} and type {index.dtype}, expected (N,) integers")
        # On another device a look would wait for it; there the indexing itself checks.
        if index.device.type == "cpu" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(names):
            raise InputError(f"task index from {index.min()} to {index.max()}, expected 0 to {len(names) - 1}: {names}")
    return _Entered(Scope(names, index))


def current() -> Scope | None:
    """The innermost scope of this thread, or ``None`` outside every scope."""
    return _stack.scopes[-1] if _stack.scopes else None


def kept() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """For activation checkpointing: ``checkpoint(block, x, use_reentrant=False, context_fn=scope.kept)``.

    The block is computed again during the backward pass, outside the ``with`` statement and perhaps in another thread;
    this gives the second computation the scope of the first.
    """
    return contextlib.nullcontext(), _Entered(current())


def task_index(x: Tensor, tasks: Sequence[str]) -> Tensor:
    """The position in ``tasks`` of each example's task, ``(len(x),)`` int64 on the device of ``x``.

    Safe under ``torch.compile``: the scope is read when the compiled code runs, so that another task needs no new
    compilation. Raises `InputError` outside a scope, for a scope that several tasks share without an index, and for a task
    that is not in ``tasks``.
    """
    index: Tensor = torch.ops.polytask.task_index(x, list(tasks))
    return index


@torch.library.custom_op("polytask::task_index", mutates_args=(), schema="(Tensor x, str[] tasks) -> Tensor")
def _task_index(x: Tensor, known: list[str]) -> Tensor:
    scope = current()
    if scope is None:
        raise InputError(f"no task scope is open, expected one of {known}: use `with polytask.task_scope(task)`")
    for name in scope.names:
        if name not in known:
            raise InputError(f"the task scope names {name!r}, expected one of {known}")
    places = torch.tensor([known.index(name) for name in scope.names], device=x.device)
    if scope.index is not None:
        if len(scope.index) != len(x):
            raise InputError(f"the task scope has {len(scope.index)} examples, the batch has {len(x)}")
        return places[scope.index.to(x.device)]
    if len(places) > 1:
        raise InputError(f"the task scope names {list(scope.names)} without saying which example belongs to which")
    return places.expand(len(x)).clone()


@_task_index.register_fake
def _(x: Tensor, known: list[str]) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)
