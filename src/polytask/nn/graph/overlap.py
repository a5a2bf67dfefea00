"""Neighbour sets of many pairs of nodes at once: what two nodes have in common, and what only one of them has.

What comes out is a sparse matrix of pairs x nodes; its product with node features sums over each pair's set. Pairs are taken
in chunks, so that the memory beside the result is bounded.

On the CPU `scipy` merges the two sorted lists of neighbours of each pair. Elsewhere all neighbours are looked up at once: a
graph's entries are sorted by ``row * width + column``, so that whether ``u`` is a neighbour of ``j`` is a binary search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from polytask.errors import InputError
from polytask.nn.graph.csr import CSR

CHUNK = 1 << 22
"""Neighbours that are looked at together."""


class NeighbourSets(NamedTuple):
    """Sets of ``B`` pairs ``(i, j)``, each a matrix of shape ``(B, nodes)`` without values.

    Attributes:
        common: neighbours of both.
        first: those of ``i`` alone.
        second: those of ``j`` alone.
    """

    common: CSR
    first: CSR
    second: CSR


def common_neighbours(graph: CSR, pairs: Tensor, chunk: int = CHUNK) -> CSR:
    """The common neighbours of each pair, ``(B, nodes)``; values of the graph do not matter.

    Args:
        graph: of ``n`` rows.
        pairs: ``(B, 2)`` int64 rows of the graph.
        chunk: about how many neighbours of the pairs are looked at together.
    """
    merge = _merged if graph.columns.device.type == "cpu" else _searched
    (common,) = zip(*(merge(graph, part, False) for part in _chunks(graph, pairs, chunk)), strict=True)
    return _joined(common, graph.width)


def neighbour_sets(graph: CSR, pairs: Tensor, chunk: int = CHUNK) -> NeighbourSets:
    """The common neighbours of each pair, and those of one of its nodes alone; arguments as for `common_neighbours`."""
    merge = _merged if graph.columns.device.type == "cpu" else _searched
    sets = zip(*(merge(graph, part, True) for part in _chunks(graph, pairs, chunk)), strict=True)
    return NeighbourSets(*(_joined(parts, graph.width) for parts in sets))


def cap_degrees(matrix: CSR, limit: int, generator: torch.Generator | None = None) -> CSR:
    """Rows of more than ``limit`` entries become ``limit`` of them, drawn with replacement, with values ``|row| / limit``.

    So the weights of a row sum to what they did, exactly where there were no values, and every row's product is kept in
    expectation. Shorter rows stay as they are. Always with values.
    """
    if limit < 1:
        raise InputError(f"degrees capped at {limit}, expected at least 1")
    counts = matrix.degrees.clamp(max=limit)
    offsets = F.pad(counts.cumsum(0), (1, 0))
    total = int(offsets[-1])
    rows = torch.repeat_interleave(counts, output_size=total)
    place = torch.arange(total, device=rows.device) - offsets[rows]
    large = matrix.degrees > limit
    sizes = matrix.degrees[large]
    drawn = torch.rand(len(sizes), limit, generator=generator, device=rows.device, dtype=torch.float64) * sizes[:, None]
    place[large[rows]] = drawn.long().sort(1).values.flatten()
    entries = matrix.offsets[rows] + place
    weights = (matrix.degrees / counts.clamp(min=1))[rows]
    values = weights if matrix.values is None else weights.to(matrix.values.dtype) * matrix.values[entries]
    return CSR(offsets, matrix.columns[entries], matrix.width, values)


Part: TypeAlias = tuple[Tensor, Tensor]
"""Of some pairs the sizes of their sets, and the nodes in them."""


def _chunks(graph: CSR, pairs: Tensor, chunk: int) -> Iterator[Tensor]:
    """The pairs in chunks, each with about ``chunk`` neighbours, or of one pair with more."""
    if len(pairs) == 0:
        return iter([pairs])
    group = graph.degrees[pairs].sum(1).cumsum(0) // chunk
    sizes: list[int] = torch.unique_consecutive(group, return_counts=True)[1].tolist()
    return iter(pairs.split(sizes))  # type: ignore[no-untyped-call]


def _merged(graph: CSR, pairs: Tensor, alone: bool) -> list[Part]:
    """Common neighbours and, with ``alone``, those of ``i`` alone and of ``j`` alone: by merging sorted lists."""
    i, j = pairs.unbind(1)
    first, second = graph.pattern[i.numpy()], graph.pattern[j.numpy()]
    found = [first.multiply(second)]
    if alone:
        found += [first > second, second > first]
    return [(torch.from_numpy(each.indptr).long().diff(), torch.from_numpy(each.indices).long()) for each in found]


def _searched(graph: CSR, pairs: Tensor, alone: bool) -> list[Part]:
    """The same by binary searches among the graph's keys."""
    i, j = pairs.unbind(1)
    if not alone:
        swapped = graph.degrees[i] > graph.degrees[j]
        i, j = torch.where(swapped, j, i), torch.where(swapped, i, j)
    found: list[Part] = []
    for one, other in ((i, j), (j, i)) if alone else ((i, j),):
        owner, entries = graph.entries_of(one)
        nodes = graph.columns[entries]
        there = graph.find(other[owner], nodes)[0]
        for mask in ([] if found else [there]) + ([~there] if alone else []):
            found.append((torch.bincount(owner[mask], minlength=len(one)), nodes[mask]))
    return found


def _joined(parts: Sequence[Part], width: int) -> CSR:
    counts, columns = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return CSR(F.pad(counts.cumsum(0), (1, 0)), columns, width)
