"""Links to predict: splits of the edges, pairs of nodes that are not linked, and batches of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from polytask.data.examples import Inputs
from polytask.data.graph.graph import GraphData
from polytask.data.graph.nodes import split_rows
from polytask.data.stream import generator
from polytask.errors import InputError
from polytask.nn.graph import CSR, adjacency, first_rows


class Links(NamedTuple):
    """Pairs of nodes: ``positive`` ``(P, 2)`` that are linked, and ``negative`` ``(M, 2)`` that are not."""

    positive: Tensor
    negative: Tensor


@dataclass(frozen=True, eq=False)
class LinkSplit:
    """Edges to train on, and links to select and to report by.

    Attributes:
        graph: the graph of the training edges alone.
        train: ``(T, 2)`` its edges, each once.
        validation, test: held-out edges, and as many pairs that are linked nowhere in the whole graph.
    """

    graph: CSR
    train: Tensor
    validation: Links
    test: Links


def split_links(graph: GraphData, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> LinkSplit:
    """A random split of an undirected graph's edges; 10 % and 20 % are customary for citation graphs.

    Repeated edges count once, and self loops are left out. Negatives are uniform, distinct, and differ between the sets.

    Args:
        graph: undirected.
        validation, test: shares of the edges, rounded down.
        seed: of the permutation and of the negatives.

    Raises:
        InputError: a directed graph, shares that leave a set without edges, or too few pairs that are not linked.
    """
    if graph.directed:
        raise InputError(f"{graph.name}: is directed, expected an undirected graph to split the links of")
    whole = graph.adjacency()
    rows, columns = whole.rows, whole.columns
    edges = torch.stack([rows, columns], 1)[rows < columns]
    key = generator(seed, 0)
    held, tested, train = split_rows(edges, validation, test, key, f"{graph.name}: {len(edges)} edges")
    negatives = pairs_without_edge(graph, len(held) + len(tested), key)
    return LinkSplit(
        adjacency(train, graph.nodes), train, Links(held, negatives[: len(held)]), Links(tested, negatives[len(held) :])
    )


def non_edges(graph: CSR, count: int, generator: torch.Generator | None = None) -> Tensor:
    """``(count, 2)`` distinct pairs ``i < j`` that are not linked, uniform among all of those, in random order.

    Exact in any graph: pairs are numbered by ``j (j - 1) / 2 + i``, and the ``k``-th that is not linked is found by a binary
    search among the numbers of those that are; nothing is rejected for being linked.

    Args:
        graph: a symmetric adjacency; self loops do not matter.
        count: how many.
        generator: of the draws, on the CPU.

    Raises:
        InputError: fewer pairs than ``count`` are not linked.
    """
    n = graph.height
    upper = graph.rows < graph.columns
    i, j = graph.rows[upper], graph.columns[upper]
    linked = (j * (j - 1) // 2 + i).sort().values
    free = n * (n - 1) // 2 - len(linked)
    if count > free:
        raise InputError(f"{count:,} pairs that are not linked asked for, and the graph has {free:,}")
    ranks = distinct(free, count, generator, taken=linked)
    j = ((1 + (8 * ranks.double() + 1).sqrt()) / 2).long()
    j = j - (j * (j - 1) // 2 > ranks).long()  # the square root may be rounded
    j = j + (j * (j + 1) // 2 <= ranks).long()
    return torch.stack([ranks - j * (j - 1) // 2, j], 1)


def pairs_without_edge(graph: GraphData, count: int, generator: torch.Generator) -> Tensor:
    """As `non_edges`, of a graph whose directions are not looked at; the error names it."""
    try:
        return non_edges(adjacency(graph.edges, graph.nodes), count, generator)
    except InputError as error:
        raise InputError(f"{graph.name}: {error}") from error


class LinkBatches:
    """A stream of `Links`: the training edges in random order, and as many pairs that are not linked, new in each epoch.

    An incomplete last batch is dropped. Negatives are pairs that the training graph does not link, so that a held-out link
    may be among them, as is customary.

    Args:
        split: what to train on.
        batch_size: positive edges in a step, over all processes together; there are as many negatives.
        seed: an epoch is a function of this and its number.
        rank, world: this process and the number of processes; each gets its share of every batch.
    """

    def __init__(self, split: LinkSplit, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if not world <= batch_size <= len(split.train):
            raise InputError(
                f"batch size {batch_size}, expected {world} to {len(split.train)}, the number of training edges"
            )
        self.split, self.batch_size, self.seed, self.rank, self.world = split, batch_size, seed, rank, world

    def __len__(self) -> int:
        return len(self.split.train) // self.batch_size

    def epoch(self, number: int, skip: int = 0) -> Iterator[Links]:
        edges, key = self.split.train, generator(self.seed, number)
        order = torch.randperm(len(edges), generator=key)
        negatives = non_edges(self.split.graph, len(edges), key)
        for k in range(skip, len(self)):
            chunk = slice(k * self.batch_size + self.rank, (k + 1) * self.batch_size, self.world)
            yield Links(edges[order[chunk]], negatives[chunk])


@dataclass(frozen=True, eq=False)
class Unlinked:
    """Some rows of links become pairs that are not linked, new for each generator: what `Examples.redraw` is for links.

    As in `LinkBatches`, a held-out link may be among them: training knows nothing of which pairs those are.

    Attributes:
        graph: the training edges alone, symmetric.
        rows: which rows of the inputs are such pairs.
    """

    graph: CSR
    rows: slice

    def __call__(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        """The inputs of `polytask.nn.graph.GraphEncoder` with other ``"ends"`` in these rows."""
        assert not isinstance(inputs, Tensor)
        ends = inputs["ends"].clone()
        ends[self.rows] = non_edges(self.graph, self.rows.stop - self.rows.start, generator)
        return {**inputs, "ends": ends}


def distinct(free: int, count: int, generator: torch.Generator | None, taken: Tensor) -> Tensor:
    """``count`` distinct whole numbers, uniform and in random order, of the ``free`` smallest that are not ``taken``.

    Args:
        free: how many there are.
        count: at most so many.
        generator: of the draws, on the CPU.
        taken: ascending, without repetition; the result is on their device.
    """
    if 2 * count >= free:
        found = torch.randperm(free, generator=generator)[:count]
    else:
        found = torch.empty(0, dtype=torch.int64)
        while len(found) < count:  # each new number is uniform among those that are not there yet
            more = torch.cat([found, torch.randint(free, (count - len(found),), generator=generator)])
            found = more[first_rows(more)[1].sort().values]
    found = found.to(taken.device)
    # As many taken numbers come before the k-th free one as have at most k free ones before them.
    return found + torch.searchsorted(taken - torch.arange(len(taken), device=taken.device), found, right=True)
