"""What a pretext task sees of a graph: all of it, or a part that is drawn for each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from polytask.nn.graph import CSR, k_hop


class Part(NamedTuple):
    """Some nodes of a graph, the edges between which are looked at.

    Attributes:
        nodes: ``(M,)`` their ids.
        seeds: how many of them, the first, a loss is about; the others are there for their sake.
    """

    nodes: Tensor
    seeds: int


Sampler: TypeAlias = Callable[[CSR, Tensor], Part | None]
"""From a graph and a batch's nodes ``(B,)`` to a part; ``None`` for the whole graph."""


def everything(graph: CSR, nodes: Tensor) -> None:
    """The whole graph, whatever the batch."""


@dataclass(frozen=True)
class Neighbourhood:
    """The batch's nodes, which a loss is about, and what lies within some hops of them.

    Args:
        hops: how far; the paper's is 3.
        above: a graph of at most so many nodes is taken whole. The paper compares with a multiple of the batch that is not
            known.
        limit: at most so many new nodes in each hop, which bounds memory: three hops reach most nodes of many a graph.
            ``None``, as in the paper, for all.
    """

    hops: int = 3
    above: int = 0
    limit: int | None = None

    def __call__(self, graph: CSR, nodes: Tensor) -> Part | None:
        if graph.height <= self.above:
            return None
        return Part(k_hop(graph, nodes, self.hops, self.limit), len(nodes))


@dataclass(frozen=True)
class Induced:
    """So many random nodes, and the edges between them; the whole graph where it has no more.

    Args:
        size: the paper's is 10,000, but 5,000 for Actor, 1,500 for Chameleon, 20,000 for ogbn-arxiv and 100,000 for
            ogbn-products.
    """

    size: int = 10_000

    def __call__(self, graph: CSR, nodes: Tensor) -> Part | None:
        if graph.height <= self.size:
            return None
        return Part(torch.randperm(graph.height, device=nodes.device)[: self.size], self.size)
