"""The last message that each node was sent."""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.nn.graph.node_table import NodeTable


def last_rows(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ones of ``nodes`` ``(M,)`` in ascending order, and the place at which each stands last.

    >>> last_rows(torch.tensor([5, 2, 5, 2, 9]))
    (tensor([2, 5, 9]), tensor([3, 2, 4]))
    """
    distinct, inverse = torch.unique(nodes, return_inverse=True)
    rows = torch.arange(len(nodes), device=nodes.device)
    return distinct, torch.zeros_like(distinct).scatter_reduce(0, inverse, rows, "amax")


def first_rows(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ones of ``nodes`` ``(M,)`` in ascending order, and the place at which each stands first."""
    distinct, from_the_end = last_rows(nodes.flip(0))
    return distinct, len(nodes) - 1 - from_the_end


def alternating(first: Tensor, second: Tensor) -> Tensor:
    """``first[0], second[0], first[1], ...``: both ends of events, in the order of the events."""
    return torch.stack([first, second], 1).flatten(0, 1)


class LastMessages(NodeTable):
    """For each of ``N`` nodes the last message that it was sent and has not used yet: columns ``message`` ``(N, width)``,
    ``time`` ``(N,)`` and ``waiting`` ``(N,)`` bool.

    Which of several messages of a batch is the last does not depend on the device: the order that they are given in says so.
    """

    def __init__(self, nodes: int, width: int) -> None:
        super().__init__(nodes, message=((width,), torch.float32), time=((), torch.float64), waiting=((), torch.bool))
        self.message: Tensor
        self.time: Tensor
        self.waiting: Tensor

    def put(self, nodes: Tensor, messages: Tensor, time: Tensor) -> None:
        """Send ``messages`` ``(M, width)`` to ``nodes`` ``(M,)``, in order of ``time`` ``(M,)``: a node keeps the last."""
        distinct, rows = last_rows(nodes)
        waiting = torch.ones_like(distinct, dtype=torch.bool)
        self.write(distinct, message=messages[rows], time=time[rows], waiting=waiting)

    def clear(self, nodes: Tensor) -> None:
        """The messages of ``nodes`` have been used."""
        self.waiting[nodes] = False
