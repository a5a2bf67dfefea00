"""How the generator's outputs become the target's weights: in which pieces they are made."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.share.hypernetwork.initialisation import Initialisation
from polytask.share.hypernetwork.layout import Layout


class Strategy(ABC):
    """Weight generation, as plain settings: ``n`` components of ``size`` numbers each become ``P`` weights.

    Attributes:
        kind: in the words of Chauhan et al., *A brief review of hypernetworks in deep learning*, 2024.
        heads: how many heads make a component's numbers, a part each.
        embedding: the width of an embedding for each component, which all contexts share; it is joined to the context's
            vector. 0 where there is one component; elsewhere 0 gives each task an embedding for each component instead.
    """

    kind: ClassVar[str]
    heads: int = 1
    embedding: int = 0

    @abstractmethod
    def shape(self, layout: Layout) -> tuple[int, int]:
        """``(n, size)``."""

    @abstractmethod
    def join(self, layout: Layout, pieces: Tensor) -> Tensor:
        """``(C, n, size)`` -> ``(C, P)``."""

    @abstractmethod
    def variances(self, layout: Layout, start: Initialisation, norm: float) -> Tensor:
        """The variance of each number at first, ``(n, size)``, NaN where it is not used; for ``norm`` see
        `Initialisation`."""


def wanted(layout: Layout, start: Initialisation, norm: float) -> Tensor:
    """The variance of each weight at first, ``(P,)``."""
    return torch.cat([torch.full((entry.numel,), start.variance(entry, norm)) for entry in layout.entries])


@dataclass(frozen=True)
class Once(Strategy):
    """All weights at once: the last layer has ``features x P`` weights."""

    kind: ClassVar[str] = "generate once"

    def shape(self, layout: Layout) -> tuple[int, int]:
        return 1, layout.numel

    def join(self, layout: Layout, pieces: Tensor) -> Tensor:
        return pieces[:, 0]

    def variances(self, layout: Layout, start: Initialisation, norm: float) -> Tensor:
        return wanted(layout, start, norm)[None]


@dataclass(frozen=True)
class Heads(Once):
    """All weights at once, by several heads that make a share each (multiple, or split-head, generation).

    Args:
        heads: how many; 2 by default. Each has a hidden layer of its own, of the body's width divided by their number.
    """

    kind: ClassVar[str] = "generate multiple"
    heads: int = 2

    def __post_init__(self) -> None:
        if self.heads < 2:
            raise InputError(f"Heads: {self.heads} heads, expected at least 2: one is Once()")


@dataclass(frozen=True)
class PerLayer(Strategy):
    """Component-wise: layer by layer, as many numbers each time as the largest layer has, of which the rest is cut.

    Args:
        embedding: as for `Chunks`; 16 by default.
    """

    kind: ClassVar[str] = "component-wise"
    embedding: int = 16

    def shape(self, layout: Layout) -> tuple[int, int]:
        return len(layout.layers), max(layout.layers)

    def join(self, layout: Layout, pieces: Tensor) -> Tensor:
        return torch.cat([pieces[:, i, :size] for i, size in enumerate(layout.layers)], 1)

    def variances(self, layout: Layout, start: Initialisation, norm: float) -> Tensor:
        table = torch.full(self.shape(layout), torch.nan)
        for row, values in zip(table, torch.split(wanted(layout, start, norm), layout.layers), strict=True):
            row[: len(values)] = values
        return table


@dataclass(frozen=True)
class Chunks(Strategy):
    """Chunk-wise: equal parts of the flat weights, ``ceil(P / count)`` numbers each, wherever they fall.

    The last layer is smaller by the factor ``count``, and so a hypernetwork may have fewer weights than what it makes.

    Args:
        count: how many chunks; 100 by default.
        embedding: the width of a chunk's embedding, which all contexts share (von Oswald et al., *Continual learning with
            hypernetworks*, ICLR 2020); 16 by default. 0: each task has an embedding for each chunk.
        heads: as for `Heads`, within each chunk; 1 by default.
    """

    kind: ClassVar[str] = "chunk-wise"
    count: int = 100
    embedding: int = 16
    heads: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"Chunks: {self.count} chunks, expected at least 1")

    def shape(self, layout: Layout) -> tuple[int, int]:
        return self.count, math.ceil(layout.numel / self.count)

    def join(self, layout: Layout, pieces: Tensor) -> Tensor:
        return pieces.flatten(1)[:, : layout.numel]

    def variances(self, layout: Layout, start: Initialisation, norm: float) -> Tensor:
        count, size = self.shape(layout)
        values = wanted(layout, start, norm)
        return torch.nn.functional.pad(values, (0, count * size - len(values)), value=torch.nan).view(count, size)


@dataclass(frozen=True)
class LowRank(Strategy):
    """``W = A B`` with generated factors ``A (out, r)`` and ``B (r, ...)``; whole where that takes no more numbers.

    Where the weights are to be 0 at first, ``A`` is random, of variance ``1 / r``, and ``B`` is 0.

    Args:
        rank: ``r``; 4 by default.
    """

    kind: ClassVar[str] = "low rank"
    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"LowRank: rank {self.rank}, expected at least 1")

    def shape(self, layout: Layout) -> tuple[int, int]:
        return 1, sum(sum(sizes) for sizes in self._sizes(layout))

    def join(self, layout: Layout, pieces: Tensor) -> Tensor:
        weights, every = [], self._sizes(layout)
        for sizes, piece in zip(every, torch.split(pieces[:, 0], [sum(sizes) for sizes in every], 1), strict=True):
            if len(sizes) > 1:
                a, b = torch.split(piece, sizes, 1)
                piece = (a.view(len(a), -1, self.rank) @ b.view(len(b), self.rank, -1)).flatten(1)
            weights.append(piece)
        return torch.cat(weights, 1)

    def variances(self, layout: Layout, start: Initialisation, norm: float) -> Tensor:
        parts = []
        for entry, sizes in zip(layout.entries, self._sizes(layout), strict=True):
            whole = start.variance(entry, norm)
            each = [math.sqrt(whole / self.rank)] * 2 if whole else [1 / self.rank, 0.0]
            parts += [torch.full((size,), v) for size, v in zip(sizes, each if len(sizes) > 1 else [whole], strict=True)]
        return torch.cat(parts)[None]

    def _sizes(self, layout: Layout) -> list[list[int]]:
        """Of each parameter's two factors, or of itself."""
        sizes = []
        for entry in layout.entries:
            factors = [entry.shape[0] * self.rank, self.rank * entry.fan_in] if len(entry.shape) > 1 else []
            sizes.append(factors if factors and sum(factors) < entry.numel else [entry.numel])
        return sizes
