"""Inputs whose embeddings have other rows than the output, or another order of them, read as if they had the output's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.merge.engine.source import Source

SPAN = 2**20
"""Elements that are read at a time to gather scattered rows from, where reading makes a copy: not from a memory map."""


@dataclass(frozen=True)
class Layout:
    """Where the rows of one tensor of the output come from.

    Attributes:
        shape: of the tensor in the output.
        dtype: in which a row of any input can be given as it is.
        base: for each row of the output its row in the base, or -1, ``(R,)``, int64; ``None`` where there is no base.
        models: the same for each model.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    base: Tensor | None
    models: Sequence[Tensor]

    @property
    def width(self) -> int:
        """Elements of a row."""
        return torch.Size(self.shape).numel() // len(self.models[0])

    def index(self, of: int | None) -> Tensor:
        """The rows of a model by its number, or of the base, by ``None``."""
        if of is not None:
            return self.models[of]
        assert self.base is not None
        return self.base

    def own(self, of: int | None, rows: slice = slice(None)) -> Tensor:
        """Which rows an input gives itself: those that it has, and the base too if there is one. ``(R,)``, booleans."""
        there = self.index(of)[rows] >= 0
        return there if self.base is None else there & (self.base[rows] >= 0)

    def is_identity(self, of: int | None) -> bool:
        """Whether an input's rows are those of the output already."""
        index = self.index(of)
        return bool(self.own(of).all()) and torch.equal(index, torch.arange(len(index)))


class MatchedRows:
    """An input as one whose tensors have the rows of the output; tensors without a layout are read as they are.

    A row is the input's own, where it has one; or the base's, which makes a task vector of 0; or, where the base has none
    either, the mean over the models that have one, in float64. All inputs share that mean, also models that have a row: in
    a merge with a base their task vectors there are 0, and the result is the mean. Without a base the models that have a row
    keep their own.

    Only rows that are asked for are read, runs of them in one piece, scattered ones by a gather from a memory map.

    Args:
        layouts: by the name of the tensor.
        base: what the models were fine-tuned from, if any.
        models: as they are.
        of: which of the models this is, or ``None`` for the base.
    """

    def __init__(self, layouts: Mapping[str, Layout], base: Source | None, models: Sequence[Source], of: int | None) -> None:
        self.base, self.models, self.of = base, models, of
        self.layouts = {name: layout for name, layout in layouts.items() if not layout.is_identity(of)}
        source = base if of is None else models[of]
        assert source is not None
        self.source = source

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` of the flattened tensor of the output."""
        if name not in self.layouts:
            return self.source.read(name, start, stop)
        layout = self.layouts[name]
        width = layout.width
        stop = torch.Size(layout.shape).numel() if stop is None else stop
        rows = slice(start // width, -(-stop // width))
        if start >= stop:
            return torch.empty(0, dtype=layout.dtype)
        return self._rows(name, layout, rows).reshape(-1)[start - rows.start * width : stop - rows.start * width]

    def release(self, name: str) -> None:
        self.source.release(name)

    def _rows(self, name: str, layout: Layout, rows: slice) -> Tensor:
        """These rows of the output, ``(n, width)``."""
        index, own = layout.index(self.of)[rows], layout.own(self.of, rows)
        if bool(own.all()):
            return _gather(self.source, name, index, layout.width)
        if layout.base is None or self.base is None:
            of_base, base_index = torch.zeros_like(own), index
        else:
            base_index = layout.base[rows]
            of_base = ~own & (base_index >= 0)
        mean = ~own & ~of_base
        found = torch.empty(len(own), layout.width, dtype=torch.float64 if bool(mean.any()) else layout.dtype)
        if bool(own.any()):
            found[own] = _gather(self.source, name, index[own], layout.width).to(found.dtype)
        if bool(of_base.any()) and self.base is not None:
            found[of_base] = _gather(self.base, name, base_index[of_base], layout.width).to(found.dtype)
        if bool(mean.any()):
            found[mean] = self._mean(name, [each[rows][mean] for each in layout.models], layout.width)
        return found

    def _mean(self, name: str, rows: Sequence[Tensor], width: int) -> Tensor:
        """The mean of each row over the models that have it, added up in their order, ``(n, width)``, float64."""
        total = torch.zeros(len(rows[0]), width, dtype=torch.float64)
        for model, index in zip(self.models, rows, strict=True):
            there = index >= 0
            if bool(there.any()):
                total[there] += _gather(model, name, index[there], width).double()
        return total / torch.stack([index >= 0 for index in rows]).sum(0)[:, None]


def with_rows(layouts: Mapping[str, Layout], base: Source | None, models: Sequence[Source], of: int | None) -> Source:
    """A model, or the base, with the rows of the output; one that begins with them already is given back as it is."""
    found = MatchedRows(layouts, base, models, of)
    return found if found.layouts else found.source


def common(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """A precision that holds the numbers of all of these."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _gather(source: Source, name: str, rows: Tensor, width: int) -> Tensor:
    """These rows of a tensor, ``(n, width)``."""
    low, high = int(rows.min()), int(rows.max()) + 1
    if bool((rows.diff() == 1).all()):
        return source.read(name, low * width, high * width).view(-1, width)
    first = source.read(name, low * width, (low + 1) * width)
    is_view = first.untyped_storage().nbytes() > first.nbytes
    if is_view or (high - low) * width <= max(SPAN, width):
        return source.read(name, low * width, high * width).view(-1, width)[rows - low]
    order = rows.argsort(stable=True)
    _, counts = torch.unique_consecutive(rows[order] // max(SPAN // width, 1), return_counts=True)
    pieces = [_gather(source, name, rows[part], width) for part in torch.split(order, counts.tolist())]
    return torch.cat(pieces)[order.argsort()]
