"""A sparse matrix in compressed rows: what a graph is to the layers and samplers of this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from polytask.errors import InputError


@dataclass(frozen=True, eq=False)
class CSR:
    """A sparse matrix in compressed rows, such as the adjacency of a graph: row ``i`` lists what node ``i`` sums over.

    Made by `adjacency` or `CSR.from_entries`, which sort. ``matrix @ dense`` is the product with ``(width, F)``, with
    gradients to ``dense`` and to ``values``, in the type of ``dense``.

    Args:
        offsets: ``(rows + 1,)`` int64: the entries of row ``i`` are ``offsets[i]`` up to ``offsets[i + 1]``.
        columns: ``(entries,)`` int64, ascending within a row.
        width: the number of columns.
        values: ``(entries,)``, or ``None`` where all are 1.

    >>> triangle_with_tail = adjacency(torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3]]), 4)
    >>> triangle_with_tail.degrees.tolist(), triangle_with_tail.columns.tolist()
    ([2, 2, 3, 1], [1, 2, 0, 2, 0, 1, 3, 2])
    >>> (triangle_with_tail @ torch.eye(4))[3].tolist()
    [0.0, 0.0, 1.0, 0.0]
    """

    offsets: Tensor
    columns: Tensor
    width: int
    values: Tensor | None = None

    @classmethod
    def from_entries(cls, rows: Tensor, columns: Tensor, shape: tuple[int, int], values: Tensor | None = None) -> Self:
        """A matrix from its entries in any order; values of repeated entries are summed, and without values they are one.

        Raises:
            InputError: an index outside of the shape, or a shape of 2^63 places or more.
        """
        height, width = shape
        if height * width >= 2**63:
            raise InputError(f"a sparse matrix of {height:,} x {width:,} has 2^63 places or more, expected fewer")
        for what, index, size in (("row", rows, height), ("column", columns, width)):
            wrong = (index < 0) | (index >= size)
            if bool(wrong.any()):
                place = int(wrong.nonzero()[0])
                raise InputError(f"entry {place}: {what} {int(index[place])}, expected 0 to {size - 1}")
        keys, order = torch.sort(rows.long() * width + columns.long())
        first = torch.ones_like(keys, dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        if values is not None:
            values = values.new_zeros(int(first.sum())).index_add(0, first.cumsum(0) - 1, values[order])
        order = order[first]
        return cls(_offsets(rows[order].long(), height), columns[order].long(), width, values)

    @property
    def height(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @cached_property
    def degrees(self) -> Tensor:
        """``(rows,)`` int64: the number of entries of each row."""
        return self.offsets.diff()

    @cached_property
    def rows(self) -> Tensor:
        """``(entries,)`` int64: the row of each entry."""
        return torch.repeat_interleave(self.degrees, output_size=len(self.columns))

    @cached_property
    def keys(self) -> Tensor:
        """``(entries,)`` int64, ascending: ``row * width + column``, by which entries are found."""
        if self.height * self.width >= 2**63:
            raise InputError(f"keys of {self.height:,} x {self.width:,} places do not fit 63 bits, expected fewer")
        return self.rows * self.width + self.columns

    @cached_property
    def pattern(self) -> Any:
        """Where the entries are, as a ``scipy.sparse.csr_matrix`` of ones, on the CPU."""
        ones = np.ones(len(self.columns), dtype=np.int8)
        return csr_matrix((ones, self.columns.numpy(), self.offsets.numpy()), shape=self.shape)

    @cached_property
    def _transposition(self) -> tuple[CSR, Tensor]:
        order = torch.argsort(self.columns, stable=True)
        pattern = CSR(_offsets(self.columns, self.width), self.rows[order], self.height)
        return pattern, order

    @cached_property
    def transposed(self) -> CSR:
        """The transposed matrix."""
        pattern, order = self._transposition
        return pattern if self.values is None else pattern.with_values(self.values[order])

    def with_values(self, values: Tensor | None) -> CSR:
        """The same entries with other values; what was computed of their places is kept."""
        other = CSR(self.offsets, self.columns, self.width, values)
        for name in ("degrees", "rows", "keys", "pattern", "_transposition"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    def sums(self) -> Tensor:
        """``(rows,)`` float: the sum of each row's values, its degree where there are none."""
        if self.values is None:
            return self.degrees.to(torch.get_default_dtype())
        return self.values.new_zeros(self.height).index_add(0, self.rows, self.values)

    def entries_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All entries of the listed rows: of each the place of its row in the list, and its own place in ``columns``."""
        counts = self.degrees[rows]
        ends = counts.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        owner = torch.repeat_interleave(counts, output_size=total)
        start = self.offsets[rows] - (ends - counts)
        return owner, torch.arange(total, device=rows.device) + start[owner]

    def take(self, rows: Tensor) -> CSR:
        """The listed rows, in that order, as a matrix ``(len(rows), width)``."""
        _, entries = self.entries_of(rows)
        values = None if self.values is None else self.values[entries]
        return CSR(F.pad(self.degrees[rows].cumsum(0), (1, 0)), self.columns[entries], self.width, values)

    def find(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """For each ``(row, column)`` whether it is an entry, and, where it is, its place in ``columns``."""
        return found_in(self.keys, rows * self.width + columns)

    def keep(self, mask: Tensor) -> CSR:
        """The matrix with the entries where the mask is true alone."""
        counts = F.pad(mask.cumsum(0), (1, 0))
        return CSR(counts[self.offsets], self.columns[mask], self.width, None if self.values is None else self.values[mask])

    def without(self, edges: Tensor) -> CSR:
        """The matrix without ``edges`` ``(E, 2)`` in either direction; those that it has not are no error."""
        both = torch.cat([edges, edges.flip(1)])
        found, place = self.find(both[:, 0], both[:, 1])
        mask = torch.ones_like(self.columns, dtype=torch.bool)
        mask[place[found]] = False
        return self.keep(mask)

    def to(self, device: torch.device | str) -> CSR:
        """The matrix on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> CSR:
        """The matrix with a function applied to its tensors."""
        return CSR(
            change(self.offsets), change(self.columns), self.width, None if self.values is None else change(self.values)
        )

    def __matmul__(self, dense: Tensor) -> Tensor:
        values = None if self.values is None else self.values.to(dense.dtype)
        product: Tensor = _Product.apply(self, values, dense)  # type: ignore[no-untyped-call]
        return product


def adjacency(edges: Tensor, nodes: int, values: Tensor | None = None) -> CSR:
    """The symmetric adjacency of an undirected graph.

    Args:
        edges: ``(E, 2)`` integers; each edge in one direction or in both. A self loop is one entry.
        nodes: their number, above every id.
        values: ``(E,)`` weights; those of an edge that is given several times add up. 1 by default, however often.

    Raises:
        InputError: an edge to a node that is not there, or so many nodes that ``nodes ** 2`` reaches 2^63.
    """
    wrong = ((edges < 0) | (edges >= nodes)).any(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InputError(f"edge {row}: nodes {edges[row].tolist()}, expected ids from 0 to {nodes - 1}")
    proper = edges[:, 0] != edges[:, 1]
    rows, columns = torch.cat([edges, edges[proper].flip(1)]).unbind(1)
    both = None if values is None else torch.cat([values, values[proper]])
    return CSR.from_entries(rows, columns, (nodes, nodes), both)


class SparseBuffer(nn.Module):
    """A sparse matrix that goes where its module goes.

    Args:
        matrix: the matrix.
        stored: keep it in the state dict; by default it is no part of it.
    """

    def __init__(self, matrix: CSR, stored: bool = False) -> None:
        super().__init__()
        self.width = matrix.width
        for name in ("offsets", "columns", "values"):
            self.register_buffer(name, getattr(matrix, name), persistent=stored)
        self._matrix: CSR | None = matrix

    offsets: Tensor
    columns: Tensor
    values: Tensor | None

    @property
    def matrix(self) -> CSR:
        """The matrix, where the module is."""
        if self._matrix is None:
            self._matrix = CSR(self.offsets, self.columns, self.width, self.values)
        return self._matrix

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._matrix = None
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._matrix = None  # what was computed of the places that it had


def found_in(ordered: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each of ``keys`` is among ``ordered`` ``(n,)``, ascending, and, where it is, its place there."""
    place = torch.searchsorted(ordered, keys).clamp_(max=max(len(ordered) - 1, 0))
    return ordered[place] == keys if len(ordered) else torch.zeros_like(keys, dtype=torch.bool), place


def _offsets(rows: Tensor, height: int) -> Tensor:
    return F.pad(torch.bincount(rows, minlength=height).cumsum(0), (1, 0))


class _Product(torch.autograd.Function):
    """Bags of embeddings are the rows of a sparse product; backward is the product with the transposed matrix."""

    @staticmethod
    def forward(ctx: Any, matrix: CSR, values: Tensor | None, dense: Tensor) -> Tensor:
        ctx.matrix = matrix
        ctx.save_for_backward(values, dense if values is not None else None)
        return F.embedding_bag(
            matrix.columns, dense, matrix.offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        matrix, (values, dense) = ctx.matrix, ctx.saved_tensors
        to_values = to_dense = None
        if ctx.needs_input_grad[2]:
            pattern, order = matrix._transposition
            to_dense = pattern.with_values(None if values is None else values[order]) @ gradient.contiguous()
        if ctx.needs_input_grad[1]:
            to_values = (gradient[matrix.rows] * dense[matrix.columns]).sum(1)
        return None, to_values, to_dense
