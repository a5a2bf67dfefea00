"""A table with a row for each node: what a model remembers of a stream, between batches and on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from polytask.errors import InputError


class Snapshot(NamedTuple):
    """What some rows of a table held.

    Attributes:
        nodes: ``(M,)`` which; ``None`` for all.
        columns: for each column its ``M`` rows.
    """

    nodes: Tensor | None
    columns: dict[str, Tensor]


class NodeTable(nn.Module):
    """Columns with a row for each of ``N`` nodes, zero at first. They are buffers: ``state_dict`` has them, and they go
    where the module goes; float64 columns, which hold times, keep their precision whatever the module is converted to.

    What is written with a gradient keeps it until `detach`; what is written without one costs no copy.

    Args:
        nodes: ``N``.
        columns: for each name the shape of a row, and its dtype.

    >>> table = NodeTable(4, state=((2,), torch.float32), time=((), torch.float64))
    >>> before = table.snapshot()
    >>> table.write(torch.tensor([2]), state=torch.ones(1, 2), time=torch.tensor([7.0]))
    >>> table.state[:, 0].tolist(), table.time.tolist()
    ([0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 7.0, 0.0])
    >>> table.restore(before)
    >>> float(table.state.sum())
    0.0
    """

    def __init__(self, nodes: int, **columns: tuple[tuple[int, ...], torch.dtype]) -> None:
        super().__init__()
        if nodes < 1:
            raise InputError(f"a table of {nodes} nodes, expected at least 1")
        self.nodes, self.columns = nodes, tuple(columns)
        for name, (shape, dtype) in columns.items():
            self.register_buffer(name, torch.zeros(nodes, *shape, dtype=dtype))

    def column(self, name: str) -> Tensor:
        """All ``N`` rows of a column."""
        found: Tensor = getattr(self, name)
        return found

    def write(self, nodes: Tensor, **values: Tensor) -> None:
        """Put ``values``, a tensor of ``M`` rows for each named column, into the rows of ``nodes`` ``(M,)``, distinct."""
        for name, value in values.items():
            column = self.column(name)
            value = value.to(column.dtype)
            if value.requires_grad or column.requires_grad:
                setattr(self, name, column.index_put((nodes,), value))
            else:
                column[nodes] = value

    def reset(self) -> None:
        """Forget everything."""
        self.detach()
        for name in self.columns:
            self.column(name).zero_()

    def detach(self) -> None:
        """Forget how what is there was computed, so that no later gradient reaches it."""
        for name in self.columns:
            setattr(self, name, self.column(name).detach())

    def snapshot(self, nodes: Tensor | None = None) -> Snapshot:
        """A copy of the rows of ``nodes``, or of all, without gradient."""
        rows = {name: self.column(name).detach() for name in self.columns}
        return Snapshot(nodes, {name: row.clone() if nodes is None else row[nodes] for name, row in rows.items()})

    def restore(self, snapshot: Snapshot) -> None:
        """Put back what `snapshot` returned, into its rows."""
        self.detach()
        if snapshot.nodes is not None:
            return self.write(snapshot.nodes, **snapshot.columns)
        for name, column in snapshot.columns.items():
            self.column(name).copy_(column)
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: self.column(name) for name in self.columns if self.column(name).dtype == torch.float64}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, column in exact.items():
            setattr(self, name, column.to(self.column(name).device))
        return self
