"""Which channels of a network have to go together: numbers for channels, ties between them, and what must not be removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Channels:
    """Numbers channels, and collects what is known of them while a network runs.

    A tensor of numbers says of each entry of an activation, or of a parameter, which channel it belongs to; 0 stands for
    none, such as a constant. What is collected is put together by `solve` in the end, when all ties are known.
    """

    def __init__(self) -> None:
        self.count = 1  # 0 is no channel
        self._edges: list[tuple[Tensor, Tensor]] = []
        self._frozen: list[tuple[Tensor, str]] = []
        self._columns: list[tuple[Tensor, str]] = []
        self._arranged: list[tuple[Tensor, tuple[int, ...], int, str]] = []

    def fresh(self, *shape: int) -> Tensor:
        """New channels."""
        first, self.count = self.count, self.count + int(np.prod(shape))
        return torch.arange(first, self.count).reshape(shape)

    def tie(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Entries of ``a`` and ``b``, which are broadcast, are removed together; beside no channel none is removed."""
        pairs = torch.stack(torch.broadcast_tensors(a, b)).flatten(1)  # type: ignore[no-untyped-call]
        pairs = pairs[:, pairs[0] != pairs[1]]
        alone = (pairs == 0).any(0)
        self.freeze(pairs[:, alone], reason)
        self._edges.append((pairs[0, ~alone], pairs[1, ~alone]))

    def freeze(self, ids: Tensor, reason: str) -> None:
        """None of these is removed."""
        self._frozen.append((ids, reason))

    def same_along_rows(self, ids: Tensor, reason: str) -> None:
        """``(rows, columns)``: a column whose entries turn out not to be removed together is not removed."""
        if len(ids) > 1:
            self._columns.append((ids, reason))

    def arranged(self, ids: Tensor, dims: Sequence[int], reason: str, free: int) -> None:
        """What is removed must vary along at most ``free`` (0 or 1) of ``dims``, so that the rest keeps its sizes there;
        otherwise none of ``ids`` is removed."""
        self._arranged.append((ids, tuple(dims), free, reason))

    def solve(self) -> tuple[np.ndarray, dict[int, str]]:
        """The set of each channel, by the number of one of them, and why a set is not removed, for those that are not."""
        from scipy.sparse import coo_array  # slow to load, and every process that opens a model would
        from scipy.sparse.csgraph import connected_components

        pairs = [torch.cat(side).numpy() for side in zip(*self._edges, strict=True)] or [np.empty(0, np.int64)] * 2
        graph = coo_array((np.ones(len(pairs[0]), np.int8), (pairs[0], pairs[1])), shape=(self.count, self.count))
        roots = connected_components(graph, directed=False)[1]
        frozen: dict[int, str] = {}

        def keep(found: np.ndarray, reason: str) -> None:
            for root in np.unique(found).tolist():
                frozen.setdefault(root, reason)

        keep(roots[:1], "it is no channel")
        for ids, reason in self._frozen:
            keep(roots[ids.numpy()], reason)
        for ids, reason in self._columns:
            found = roots[ids.numpy()]
            keep(found[:, (found != found[0]).any(0)], reason)
        for ids, dims, free, reason in self._arranged:
            found = roots[ids.numpy()]
            if sum(varies(found, dim) for dim in dims) > free:
                keep(found, reason)
        return roots, frozen


def varies(values: np.ndarray, dim: int) -> bool:
    """Whether the values depend on the place along a dimension."""
    return bool((values != values.take([0], dim)).any())


def compact(ids: Tensor) -> Tensor:
    """``ids`` with size 1 along each dimension on which they do not depend."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1:
            first = ids.narrow(dim, 0, 1)
            if ids.stride(dim) == 0 or bool((ids == first).all()):
                ids = first
    return ids
