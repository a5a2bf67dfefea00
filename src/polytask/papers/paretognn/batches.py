"""What a step of pre-training is about: some nodes, some edges, and pairs to tell edges from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from polytask.data.graph.links import distinct
from polytask.data.stream import generator
from polytask.errors import InputError
from polytask.nn.graph import CSR


class PretextBatch(NamedTuple):
    """Of one step the nodes ``(B,)``, edges ``positive`` ``(P, 2)``, and other pairs ``negative`` ``(M, 2)``."""

    nodes: Tensor
    positive: Tensor
    negative: Tensor


class PretextBatches:
    """A stream of `PretextBatch`: an epoch goes through the nodes in random order; an incomplete last batch is dropped.

    With each batch come random edges, and pairs of one end of such an edge and a uniform node, which may be linked too.

    Args:
        graph: a symmetric adjacency, of the edges that may be seen.
        batch_size: nodes in a step, over all processes together; the paper's is 1024.
        edges: distinct edges in a step of one process, at most as many as there are; by default 10 for each of its nodes.
        negatives: pairs for each edge.
        seed: a batch is a function of this, the epoch and its place.
        rank, world: this process and the number of processes.
    """

    def __init__(
        self,
        graph: CSR,
        batch_size: int = 1024,
        edges: int | None = None,
        negatives: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not world <= batch_size <= graph.height:
            raise InputError(f"batch size {batch_size}, expected {world} to {graph.height}, the number of nodes")
        self.entries = (graph.rows < graph.columns).nonzero()[:, 0]
        edges = 10 * (batch_size // world) if edges is None else edges
        if len(self.entries) == 0 or edges < 1 or negatives < 1:
            raise InputError(
                f"{edges} of {len(self.entries)} edges in a step, {negatives} negatives for each, expected 1 or more of each"
            )
        self.graph, self.batch_size, self.negatives = graph, batch_size, negatives
        self.edges = min(edges, len(self.entries))
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self) -> int:
        return self.graph.height // self.batch_size

    def epoch(self, number: int, skip: int = 0) -> Iterator[PretextBatch]:
        order = torch.randperm(self.graph.height, generator=generator(self.seed, number))
        for k in range(skip, len(self)):
            key = generator(self.seed, number, k, self.rank)
            drawn = self.entries[distinct(len(self.entries), self.edges, key, self.entries[:0])]
            positive = torch.stack([self.graph.rows[drawn], self.graph.columns[drawn]], 1)
            others = torch.randint(self.graph.height, (self.edges * self.negatives,), generator=key)
            negative = torch.stack([positive[:, 0].repeat_interleave(self.negatives), others], 1)
            chunk = slice(k * self.batch_size + self.rank, (k + 1) * self.batch_size, self.world)
            yield PretextBatch(order[chunk], positive, negative)
