"""Events between nodes, in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from polytask.errors import InputError

LARGEST = 2**31 - 1
"""The largest number that a node may have: each has a row in a model's tables."""


@dataclass(frozen=True, eq=False)
class Events:
    """``E`` events in order of time; those of the same time happen in the order that they stand in.

    ``events[index]``, with a slice, a mask or places in ascending order, has some of them, of the same nodes.

    Args:
        name: what to call them in errors: their file.
        source, destination: ``(E,)`` integers, numbers of nodes.
        time: ``(E,)``, in any unit, kept as float64, in which seconds since 1970 are exact to a microsecond.
        features: ``(E, F)`` float; ``None`` where events have none.
        labels: ``(E,)`` float; ``None`` where events have none.
        nodes: numbers of nodes are below this; by default the largest there is, and 1.
        rows: ``(E,)`` int64, the rows of the file, counted from 1; by default their places.

    Raises:
        InputError: naming the row: a time before the one in front of it, a time or a feature that is not finite, a number
            that no node can have. Also tensors that do not fit one another.
    """

    name: str
    source: Tensor
    destination: Tensor
    time: Tensor
    features: Tensor | None = None
    labels: Tensor | None = None
    nodes: int = -1
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        count = len(self.time)
        if len(self.rows) == 0:
            object.__setattr__(self, "rows", torch.arange(1, count + 1))
        object.__setattr__(self, "time", self.time.double())
        columns = {"sources": self.source, "destinations": self.destination, "rows": self.rows}
        given = {"features": self.features, "labels": self.labels}
        for what, column in (columns | {what: column for what, column in given.items() if column is not None}).items():
            if len(column) != count:
                raise InputError(f"{self.name}: {len(column)} {what} of {count} events, expected one for each")
        largest = LARGEST if self.nodes < 0 else self.nodes - 1
        for what, column in (("source", self.source), ("destination", self.destination)):
            if column.is_floating_point() or column.ndim != 1:
                raise InputError(f"{self.name}: {what}s {tuple(column.shape)} {column.dtype}, expected (E,) integers")
            self._refuse((column < 0) | (column > largest), what, column, f"a node from 0 to {largest}")
            object.__setattr__(self, what, column.long())
        self._refuse(~self.time.isfinite(), "time", self.time, "a finite number")
        if self.features is not None:
            if self.features.ndim != 2:
                raise InputError(f"{self.name}: features of shape {tuple(self.features.shape)}, expected (E, F)")
            wrong = ~self.features.isfinite()
            self._refuse(wrong.any(1), "feature", self.features.where(wrong, 0).sum(1), "finite numbers")
        back = torch.zeros(count, dtype=torch.bool)
        back[1:] = self.time[1:] < self.time[:-1]
        self._refuse(back, "time", self.time, "none before that of the row in front of it")
        if self.nodes < 0:
            numbers = [int(column.max()) for column in (self.source, self.destination) if count]
            object.__setattr__(self, "nodes", max(numbers, default=-1) + 1)

    def _refuse(self, wrong: Tensor, what: str, values: Tensor, expected: str) -> None:
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            raise InputError(f"{self.name}: row {int(self.rows[place])}: {what} {values[place].item()}, expected {expected}")

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, index: slice | Tensor) -> Events:
        return replace(
            self,
            source=self.source[index],
            destination=self.destination[index],
            time=self.time[index],
            features=None if self.features is None else self.features[index],
            labels=None if self.labels is None else self.labels[index],
            rows=self.rows[index],
        )

    @property
    def width(self) -> int:
        """``F``, 0 without features."""
        return 0 if self.features is None else self.features.shape[1]

    @property
    def pairs(self) -> Tensor:
        """``(E,)`` int64: a number for each pair of source and destination, ``source * nodes + destination``."""
        return self.source * self.nodes + self.destination

    def touches(self, nodes: Tensor) -> Tensor:
        """``(E,)`` bool: whether an end of the event is one of ``nodes``."""
        return torch.isin(self.source, nodes) | torch.isin(self.destination, nodes)

    @staticmethod
    def joined(parts: Sequence[Events]) -> Events:
        """Parts of one stream after one another."""
        features = [part.features for part in parts if part.features is not None]
        labels = [part.labels for part in parts if part.labels is not None]
        return replace(
            parts[0],
            source=torch.cat([part.source for part in parts]),
            destination=torch.cat([part.destination for part in parts]),
            time=torch.cat([part.time for part in parts]),
            features=torch.cat(features) if features else None,
            labels=torch.cat(labels) if labels else None,
            rows=torch.cat([part.rows for part in parts]),
        )
