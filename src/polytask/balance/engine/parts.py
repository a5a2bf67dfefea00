"""Gradients of several tasks on one parameter, in the form that is smallest, and their inner products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

CHUNK = 2**24
"""Numbers of gradients that are made at a time when only their inner products are wanted."""


def rows_are_cheaper(rows: int, width: int, out: int, count: int) -> bool:
    """Whether inner products of a layer's gradients for ``count`` tasks are less work by its rows than by the gradients.

    By rows: ``x x^T``, its product with what comes back for each task, and the products of those. Otherwise: the gradients
    ``(out, width)`` of each task, and their products.
    """
    by_rows = rows * rows * (width + count * out) + count * count * rows * out
    multiplied_out = count * rows * width * out + count * count * width * out
    return by_rows < multiplied_out and rows * rows <= max(CHUNK, rows * (width + count * out))


@dataclass
class Dense:
    """The gradients themselves, ``(m, *shape)``, of the ``m`` tasks with the numbers ``tasks``."""

    grads: Tensor
    tasks: tuple[int, ...]

    def numel(self) -> int:
        return self.grads.numel()

    def dense(self) -> Tensor:
        """The gradients, flat, ``(m, p)``."""
        return self.grads.flatten(1)

    def gramian(self) -> Tensor:
        return _inner(self.dense())

    def weighted(self, weights: Tensor) -> Tensor:
        return weights.to(self.grads) @ self.dense()


@dataclass
class Rows:
    """The gradients ``sum_t outer(delta[k, t], x[t])`` of a weight ``(out, in)``, by what the layer got and what comes back.

    Attributes:
        x: what the layer got, ``(T, in)``.
        delta: what comes back for each task, ``(m, T, out)``.
        tasks: their numbers.
        flip: whether the weight is stored as ``(in, out)``.
    """

    x: Tensor
    delta: Tensor
    tasks: tuple[int, ...]
    flip: bool = False

    def numel(self) -> int:
        return self.x.numel() + self.delta.numel()

    def cheapest(self, count: int) -> Dense | Rows:
        """These gradients, multiplied out where that is less work for the inner products of ``count`` tasks."""
        t, width, out = *self.x.shape, self.delta.shape[2]
        if rows_are_cheaper(t, width, out, count) or count * width * out > 4 * CHUNK:
            return self
        return Dense(self.dense(), self.tasks)

    def smallest(self) -> Dense | Rows:
        """These gradients, multiplied out where that takes less memory."""
        m, _, out = self.delta.shape
        return Dense(self.dense(), self.tasks) if m * out * self.x.shape[1] < self.numel() else self

    def dense(self) -> Tensor:
        x, delta = _one_type(self.x, self.delta)
        every = x.expand(len(delta), *x.shape)
        grads = torch.bmm(every.transpose(1, 2), delta) if self.flip else torch.bmm(delta.transpose(1, 2), every)
        return grads.flatten(1)

    def gramian(self) -> Tensor:
        x, delta = _one_type(self.x, self.delta)
        m, t, out = delta.shape
        width = x.shape[1]
        if rows_are_cheaper(t, width, out, m):
            return delta.flatten(1) @ torch.bmm((x @ x.T).expand(m, t, t), delta).flatten(1).T
        step = max(1, CHUNK // (m * width))
        every = x.expand(m, *x.shape)
        chunks = (delta[..., i : i + step].transpose(1, 2) for i in range(0, out, step))
        return torch.stack([_inner(torch.bmm(chunk, every).flatten(1)) for chunk in chunks]).sum(0)

    def weighted(self, weights: Tensor) -> Tensor:
        x, delta = _one_type(self.x, self.delta)
        mixed = (weights.to(delta) @ delta.flatten(1)).view(delta.shape[1:])
        return (x.T @ mixed if self.flip else mixed.T @ x).flatten()


@dataclass
class Scattered:
    """Gradients that are zero but on some rows of a parameter of ``length`` rows: ``grads``, ``(m, len(rows), width)``."""

    rows: Tensor
    grads: Tensor
    tasks: tuple[int, ...]
    length: int

    def numel(self) -> int:
        return self.grads.numel() + self.rows.numel()

    def dense(self) -> Tensor:
        whole = self.grads.new_zeros(len(self.grads), self.length, self.grads.shape[2])
        return whole.index_copy_(1, self.rows, self.grads).flatten(1)

    def gramian(self) -> Tensor:
        return _inner(self.grads.flatten(1))

    def weighted(self, weights: Tensor) -> Tensor:
        mixed = (weights.to(self.grads) @ self.grads.flatten(1)).view(self.grads.shape[1:])
        return mixed.new_zeros(self.length, mixed.shape[1]).index_copy_(0, self.rows, mixed).flatten()


Part: TypeAlias = Dense | Rows | Scattered


def stacked(parts: Sequence[Part]) -> Part:
    """The gradients of several tasks from one use of a parameter, each given by itself."""
    first, tasks = parts[0], tuple(task for part in parts for task in part.tasks)
    if len(parts) == 1:
        return first
    if isinstance(first, Rows):
        return Rows(first.x, torch.cat([p.delta for p in parts if isinstance(p, Rows)]), tasks, first.flip)
    if isinstance(first, Scattered):
        return Scattered(first.rows, torch.cat([p.grads for p in parts if isinstance(p, Scattered)]), tasks, first.length)
    return Dense(torch.cat([p.grads for p in parts if isinstance(p, Dense)]), tasks)


def merged(parts: Sequence[Part], count: int) -> Part:
    """The sum of the gradients in ``parts``, where each of ``count`` tasks may have some in each."""
    if len(parts) == 1:
        return parts[0]
    rows = [part for part in parts if isinstance(part, Rows)]
    if len(rows) == len(parts) and len({(part.tasks, part.flip) for part in rows}) == 1:
        together = Rows(
            torch.cat([part.x for part in rows]), torch.cat([part.delta for part in rows], 1), rows[0].tasks, rows[0].flip
        )
        return together.smallest()
    first = parts[0].dense()
    grads = first.new_zeros(count, first.shape[1])
    grads[list(parts[0].tasks)] = first
    return Dense(add_up(parts[1:], grads), tuple(range(count)))


def add_up(parts: Sequence[Part], grads: Tensor) -> Tensor:
    """``grads``, ``(K, p)``, with the gradients in ``parts`` added to the rows of their tasks."""
    for part in parts:
        grads[list(part.tasks)] += part.dense().to(grads)
    return grads


def inner_products(parts: Sequence[Part], count: int) -> Tensor:
    """Inner products of the sums of ``parts``, ``(count, count)``, float64, on the device."""
    if len(parts) > 1 and _apart(parts):
        return _of_separate_batches([part for part in parts if isinstance(part, Rows)], count)
    part = merged(parts, count)
    gramian = part.gramian().double()
    if part.tasks == tuple(range(count)):
        return gramian
    whole = gramian.new_zeros(count, count)
    index = torch.tensor(part.tasks, device=gramian.device)
    whole[index[:, None], index] = gramian
    return whole


def weighted_sum(parts: Sequence[Part], weights: Tensor) -> Tensor:
    """``sum_k weights[k] g_k``, flat, of the gradients in ``parts``; weights ``(K,)``."""
    sums = [part.weighted(weights[list(part.tasks)]) for part in parts]
    return sums[0] if len(sums) == 1 else torch.stack([s.to(sums[0]) for s in sums]).sum(0)


def _apart(parts: Sequence[Part]) -> bool:
    """Whether each task has rows of its own: then products of rows may be less work than the gradients themselves."""
    if not all(isinstance(part, Rows) and len(part.tasks) == 1 for part in parts):
        return False
    rows = [part for part in parts if isinstance(part, Rows)]
    if len({part.flip for part in rows}) > 1:
        return False
    total, width, out = sum(len(part.x) for part in rows), rows[0].x.shape[1], rows[0].delta.shape[2]
    count = len({part.tasks for part in rows})
    return total * total * (width + out) < total * width * out + count * count * width * out and total * total <= 4 * CHUNK


def _of_separate_batches(parts: Sequence[Rows], count: int) -> Tensor:
    x, delta = _one_type(torch.cat([part.x for part in parts]), torch.cat([part.delta[0] for part in parts]))
    products = (x @ x.T).mul_(delta @ delta.T)
    owner = torch.tensor([part.tasks[0] for part in parts for _ in range(len(part.x))], device=x.device)
    by_task = products.new_zeros(count, len(x)).index_add_(0, owner, products).double()
    return by_task.new_zeros(count, count).index_add_(1, owner, by_task)


def _inner(grads: Tensor) -> Tensor:
    grads = grads if grads.dtype == torch.float64 else grads.float()
    return grads @ grads.T


def _one_type(x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one precision, which is never half: sums over rows lose too much there."""
    kind = torch.promote_types(torch.promote_types(x.dtype, delta.dtype), torch.float32)
    return x.to(kind), delta.to(kind)
