"""Products of low rank beside a linear layer: of one task, or of each example's own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.scope import task_index
from polytask.share._select import one_hot

WIDEST = 256
"""Ranks of all tasks together up to which a mixed batch is multiplied with all factors, and what is not an example's own set
to 0: one large product is faster than many small ones."""


def check_dropout(name: str, dropout: float) -> None:
    """Raise `InputError` for a dropout that cannot be, of the settings ``name``."""
    if not 0 <= dropout < 1:
        raise InputError(f"{name}: dropout {dropout}, expected from 0 to below 1")


def low_rank(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``x A^T B`` for ``x (..., in)``, ``A (r, in)`` and ``B (r, out)``, in the dtype of ``x``."""
    return F.linear(x, a.to(x.dtype)) @ b.to(x.dtype)


def low_rank_of_each(x: Tensor, a: Tensor, b: Tensor, tasks: Sequence[str]) -> Tensor:
    """The same for ``x (N, ..., in)`` with the factors of each example's task, of ``A (K, r, in)`` and ``B (K, r, out)``."""
    if a.shape[0] * a.shape[1] <= WIDEST:
        mine = one_hot(x, tasks).repeat_interleave(a.shape[1], 1).view(len(x), *[1] * (x.dim() - 2), -1)
        return (F.linear(x, a.flatten(0, 1).to(x.dtype)) * mine) @ b.flatten(0, 1).to(x.dtype)
    index = task_index(x, tasks)
    return low_rank_by_example(x, a[index], b[index])


def low_rank_by_example(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same where each example of ``x (N, ..., in)`` has factors of its own, ``A (N, r, in)`` and ``B (N, r, out)``."""
    rows = x.reshape(len(x), -1, x.shape[-1])
    return (rows @ a.to(x.dtype).mT @ b.to(x.dtype)).view(*x.shape[:-1], -1)
