"""Parts of a graph: neighbourhoods, whole or drawn, with nodes numbered anew; and random walks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.nn.graph.csr import CSR, found_in


class Sampled(NamedTuple):
    """A part of a graph.

    Attributes:
        nodes: ``(M,)`` their ids in the whole graph; those that were asked for come first, in their order.
        graph: ``(M, M)``, by places in ``nodes``.
    """

    nodes: Tensor
    graph: CSR


def k_hop(
    graph: CSR, seeds: Tensor, hops: int, limit: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """The nodes within ``hops`` steps of the seeds: the seeds first, then hop by hop, each hop's in ascending order.

    Args:
        graph: rows list a node's neighbours.
        seeds: ``(S,)`` distinct nodes.
        hops: how far, >= 0.
        limit: at most so many new nodes in each hop, drawn without replacement from those that it reaches; ``None`` for all.
        generator: of the draws.
    """
    seen = torch.zeros(graph.width, dtype=torch.bool, device=seeds.device)
    seen[seeds] = True
    found, front = [seeds], seeds
    for _ in range(hops):
        _, entries = graph.entries_of(front)
        reached = torch.unique(graph.columns[entries])
        front = reached[~seen[reached]]
        if limit is not None and len(front) > limit:
            drawn = torch.randperm(len(front), generator=generator, device=front.device)[:limit]
            front = front[drawn.sort().values]
        seen[front] = True
        found.append(front)
    return torch.cat(found)


def subgraph(graph: CSR, nodes: Tensor) -> CSR:
    """The edges between ``nodes`` ``(M,)``, which are distinct: ``(M, M)`` by places in ``nodes``, with their values."""
    place = _places(graph.width, nodes)
    owner, entries = graph.entries_of(nodes)
    columns = place[graph.columns[entries]]
    inside = columns >= 0
    values = None if graph.values is None else graph.values[entries[inside]]
    return CSR.from_entries(owner[inside], columns[inside], (len(nodes), len(nodes)), values)


class Neighbourhoods(NamedTuple):
    """Neighbourhoods of many samples side by side; a node that several of them have is there once for each.

    Attributes:
        nodes: ``(M,)`` their ids in the whole graph: first all samples' seeds in their order, then hop by hop.
        owner: ``(M,)`` the sample that each belongs to.
        edges: ``(E, 2)`` source and target by places in ``nodes``: the edges between nodes of one sample.
        entries: ``(E,)`` the place of each edge in the graph's ``columns``.
    """

    nodes: Tensor
    owner: Tensor
    edges: Tensor
    entries: Tensor


def neighbourhoods(
    graph: CSR,
    seeds: Tensor,
    hops: int,
    limit: int | None = None,
    generator: torch.Generator | None = None,
    piece: int = 2**22,
) -> Neighbourhoods:
    """For each sample what `k_hop` and `subgraph` give for it alone, for all of them at once.

    Args:
        graph: rows list a node's neighbours, the sources of the edges into it; an entry may be there several times.
        seeds: ``(B, S)`` those of each sample, distinct within it.
        hops: how far, >= 0.
        limit: at most so many new nodes of a sample in each hop, drawn without replacement from those that it reaches; of
            a node's own neighbours it looks at so many at most, so that memory does not grow with a hub's degree. ``None``
            for all.
        generator: of the draws.
        piece: edges are looked for among about so many entries at a time.
    """
    count, n = len(seeds), graph.width
    if count * n >= 2**63:
        raise InputError(f"{count:,} samples of a graph of {n:,} nodes have 2^63 places or more, expected fewer")
    device = seeds.device
    front = (torch.arange(count, device=device)[:, None] * n + seeds).flatten()
    seen = front.sort().values
    if bool((seen[1:] == seen[:-1]).any()):
        raise InputError("a sample lists a seed twice, expected distinct nodes")
    found = [front]
    for _ in range(hops):
        nodes = front % n
        row, entries = graph.entries_of(nodes) if limit is None else _draw(graph, nodes, limit, generator)
        reached = torch.unique(front[row] - nodes[row] + graph.columns[entries])
        front = reached[~found_in(seen, reached)[0]]
        if limit is not None:
            front = _at_most(front, front // n, limit, generator)
        seen = torch.cat([seen, front]).sort().values
        found.append(front)
    keys = torch.cat(found)
    nodes, (ordered, order) = keys % n, keys.sort()
    edges, taken = [], []
    degrees = graph.degrees[nodes]
    for place in _pieces(degrees, piece):
        row, entries = graph.entries_of(nodes[place])
        target = place[row]
        inside, source = found_in(ordered, keys[target] - nodes[target] + graph.columns[entries])
        edges.append(torch.stack([order[source[inside]], target[inside]], 1))
        taken.append(entries[inside])
    return Neighbourhoods(nodes, keys // n, torch.cat(edges), torch.cat(taken))


def sample_neighbours(
    graph: CSR,
    seeds: Tensor,
    fanouts: Sequence[int],
    generator: torch.Generator | None = None,
    rescale: bool = False,
) -> Sampled:
    """What a network of ``len(fanouts)`` layers sees of the seeds, with at most so many neighbours of a node in each hop.

    Each node that hop ``h`` first reached draws ``fanouts[h]`` of its neighbours, uniformly and without replacement, or
    takes them all where it has no more; -1 takes all. The rows of nodes reached last are empty. Hamilton, Ying and
    Leskovec, *Inductive representation learning on large graphs*, NeurIPS 2017, draw with replacement.

    Args:
        graph: rows list what a node sums over.
        seeds: ``(S,)`` distinct nodes.
        fanouts: the number of neighbours by hop.
        generator: of the draws.
        rescale: values times a node's neighbours over those that were drawn, so that sums are kept in expectation.
    """
    place = _places(graph.width, seeds)
    nodes, front, count = [seeds], seeds, len(seeds)
    rows, entries = [], []
    for fanout in fanouts:
        owner, drawn = graph.entries_of(front) if fanout < 0 else _draw(graph, front, fanout, generator)
        rows.append(place[front[owner]])
        entries.append(drawn)
        reached = torch.unique(graph.columns[drawn])
        front = reached[place[reached] < 0]
        place[front] = torch.arange(count, count + len(front), device=front.device)
        count += len(front)
        nodes.append(front)
    taken = torch.cat(entries) if entries else seeds[:0]
    values = None if graph.values is None else graph.values[taken]
    joined = torch.cat(rows) if rows else seeds[:0]
    part = CSR.from_entries(joined, place[graph.columns[taken]], (count, count), values)
    found = torch.cat(nodes)
    if rescale:
        weights = (graph.degrees[found] / part.degrees.clamp(min=1))[part.rows]
        part = part.with_values(weights if part.values is None else weights.to(part.values.dtype) * part.values)
    return Sampled(found, part)


def random_walks(graph: CSR, starts: Tensor, length: int, generator: torch.Generator | None = None) -> Tensor:
    """``(W, length + 1)``: walks from ``starts`` ``(W,)``, each step to a uniform neighbour; without one, it stays."""
    walks = [starts]
    for _ in range(length):
        here = walks[-1]
        degree = graph.degrees[here]
        chance = torch.rand(here.shape, generator=generator, device=here.device, dtype=torch.float64)
        entry = graph.offsets[here] + (chance * degree).long()
        there = graph.columns[entry.clamp(max=max(len(graph.columns) - 1, 0))] if len(graph.columns) else here
        walks.append(torch.where(degree > 0, there, here))
    return torch.stack(walks, 1)


def _draw(graph: CSR, rows: Tensor, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """``count`` distinct entries of each row, or all of them: which row's, and their places. By Floyd's algorithm."""
    if count < 1:
        raise InputError(f"{count} neighbours to draw, expected at least 1, or -1 for all")
    degrees = graph.degrees[rows]
    large = (degrees > count).nonzero()[:, 0]
    few = (degrees <= count).nonzero()[:, 0]
    chosen = torch.empty(len(large), count, dtype=torch.int64, device=rows.device)
    for k in range(count):
        last = degrees[large] - count + k
        chance = torch.rand(len(large), generator=generator, device=rows.device, dtype=torch.float64)
        place = (chance * (last + 1)).long()
        taken = (chosen[:, :k] == place[:, None]).any(1)
        chosen[:, k] = torch.where(taken, last, place)
    owner, entries = graph.entries_of(rows[few])
    drawn = (graph.offsets[rows[large]][:, None] + chosen).flatten()
    return torch.cat([few[owner], large.repeat_interleave(count)]), torch.cat([entries, drawn])


def _at_most(keys: Tensor, groups: Tensor, limit: int, generator: torch.Generator | None) -> Tensor:
    """Of each group ``limit`` of its keys, drawn without replacement, or all; ascending, as ``keys`` and ``groups`` are."""
    chance = torch.rand(len(keys), generator=generator, device=keys.device, dtype=torch.float64)
    order = torch.argsort(groups + chance)
    first = torch.searchsorted(groups, groups)  # where each key's group begins, which order does not change
    rank = torch.arange(len(keys), device=keys.device) - first
    return keys[order[rank < limit]].sort().values


def _pieces(counts: Tensor, size: int) -> list[Tensor]:
    """Places in their order, in parts whose counts sum to about ``size``; at least one part."""
    number = (counts.cumsum(0) - 1).clamp(min=0) // size
    lengths: list[int] = torch.unique_consecutive(number, return_counts=True)[1].tolist()
    return list(torch.split(torch.arange(len(counts), device=counts.device), lengths or [0]))


def _places(size: int, nodes: Tensor) -> Tensor:
    """``(size,)``: each node's place in ``nodes``, -1 for the others; `InputError` where one comes twice."""
    place = torch.full((size,), -1, dtype=torch.int64, device=nodes.device)
    place[nodes] = torch.arange(len(nodes), device=nodes.device)
    if len(nodes) and not bool((place[nodes] == torch.arange(len(nodes), device=nodes.device)).all()):
        raise InputError("a node is listed twice, expected distinct nodes")
    return place
