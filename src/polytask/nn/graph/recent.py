"""The neighbours that each node met last."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.nn.graph.messages import alternating
from polytask.nn.graph.node_table import NodeTable


class Recent(NamedTuple):
    """The last neighbours of ``Q`` nodes, in no particular order.

    Attributes:
        neighbours: ``(Q, K)`` int64, 0 where there are fewer than ``K``.
        time: ``(Q, K)`` float64, of the events.
        features: ``(Q, K, F)``, of the events.
        there: ``(Q, K)`` bool.
    """

    neighbours: Tensor
    time: Tensor
    features: Tensor
    there: Tensor


class RecentNeighbours(NodeTable):
    """For each of ``N`` nodes its last ``K`` events: a ring of ``K`` places, of which the oldest is the next to be written.

    Args:
        nodes: ``N``.
        size: ``K``.
        edge_width: ``F``, the features of an event.
    """

    def __init__(self, nodes: int, size: int, edge_width: int = 0) -> None:
        if size < 1:
            raise InputError(f"the last {size} neighbours, expected at least 1")
        super().__init__(
            nodes,
            neighbour=((size,), torch.int64),
            time=((size,), torch.float64),
            feature=((size, edge_width), torch.float32),
            count=((), torch.int64),
        )
        self.size = size
        self.neighbour: Tensor
        self.time: Tensor
        self.feature: Tensor
        self.count: Tensor

    def of(self, nodes: Tensor) -> Recent:
        """Those of ``nodes`` ``(Q,)``."""
        there = torch.arange(self.size, device=nodes.device) < self.count[nodes][:, None]
        return Recent(self.neighbour[nodes], self.time[nodes], self.feature[nodes], there)

    def meet(self, source: Tensor, destination: Tensor, time: Tensor, features: Tensor | None = None) -> None:
        """Both ends of events ``(B,)`` meet each other; features are ``(B, F)``."""
        ends, others = alternating(source, destination), alternating(destination, source)
        self.add(ends, others, time.repeat_interleave(2), None if features is None else features.repeat_interleave(2, 0))

    def add(self, nodes: Tensor, neighbours: Tensor, time: Tensor, features: Tensor | None = None) -> None:
        """``nodes`` ``(M,)`` meet ``neighbours`` ``(M,)`` in this order; features are ``(M, F)``."""
        order = nodes.argsort(stable=True)
        owners = nodes[order]
        distinct, counts = torch.unique_consecutive(owners, return_counts=True)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(owners), device=nodes.device) - starts.repeat_interleave(counts)
        kept = rank >= (counts - self.size).repeat_interleave(counts)  # no place of the ring is written twice
        order, owners, rank = order[kept], owners[kept], rank[kept]
        place = (self.count[owners] + rank) % self.size
        self.neighbour[owners, place] = neighbours[order]
        self.time[owners, place] = time[order]
        if features is not None:
            self.feature[owners, place] = features[order].to(self.feature.dtype)
        self.count[distinct] += counts
