"""TGN's memory: a state of each node that its events change."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from polytask.errors import InputError, suggest
from polytask.nn.graph.messages import LastMessages, alternating, last_rows
from polytask.nn.graph.node_table import NodeTable
from polytask.nn.graph.time import TimeEncoding

CELLS = {"gru": nn.GRUCell, "rnn": nn.RNNCell}


class Updated(NamedTuple):
    """Nodes' states with the messages that waited for them.

    Attributes:
        nodes: ``(M,)`` distinct, ascending.
        states: ``(M, width)``, with gradient.
        time: ``(M,)`` float64, of each node's last event.
        before: ``(M, width)`` the states without these messages.
        elapsed: ``(M,)`` float64, from the event before the message's to the message's; 0 where none waited.
        changed: ``(M,)`` bool, whether one waited.
    """

    nodes: Tensor
    states: Tensor
    time: Tensor
    before: Tensor
    elapsed: Tensor
    changed: Tensor

    def rows(self, nodes: Tensor) -> Tensor:
        """Where ``nodes``, which are among these, stand."""
        return torch.searchsorted(self.nodes, nodes)


class TemporalMemory(nn.Module):
    """The memory of Rossi et al., *Temporal graph networks for deep learning on dynamic graphs* (TGN), 2020.

    An event of ``i`` with ``j`` at time ``t`` sends ``i`` the message ``[s_i, s_j, e_ij, TE(t - t_i)]``, where ``t_i`` is
    the time of ``i``'s last event, and ``j`` likewise. Of a batch's messages to a node the last one counts. It waits until
    the node is next needed: then ``s_i`` becomes ``GRU(message, s_i)``, and what is computed from that trains the cell. So
    no batch is predicted from its own events.

    A pass is `forward` for all nodes that are needed, then `advance` with what it returned. States, times and messages are
    in the module's state dict.

    Args:
        nodes: how many there are.
        width: of a state.
        edge_width: of the events' features ``e_ij``.
        time_width: of the encoding ``TE``; by default ``width``.
        message_width: of a message after a perceptron of one hidden layer; ``None``: messages as they are.
        cell: ``"gru"`` or ``"rnn"``.
    """

    def __init__(
        self,
        nodes: int,
        width: int = 172,
        *,
        edge_width: int = 0,
        time_width: int | None = None,
        message_width: int | None = None,
        cell: str = "gru",
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise InputError(f"unknown cell {cell!r}: {suggest(cell, CELLS)}")
        self.nodes, self.width, self.edge_width = nodes, width, edge_width
        self.table = NodeTable(nodes, state=((width,), torch.float32), time=((), torch.float64))
        self.messages = LastMessages(nodes, width + edge_width)
        self.encode = TimeEncoding(time_width or width)
        raw = 2 * width + edge_width + self.encode.width
        self.message: nn.Module = nn.Identity()
        if message_width is not None:
            self.message = nn.Sequential(nn.Linear(raw, raw // 2), nn.ReLU(), nn.Linear(raw // 2, message_width))
        self.cell = CELLS[cell](message_width or raw, width)

    def reset(self, start: float = 0.0) -> None:
        """Forget everything; the stream begins at ``start``, from where the time to each node's first event is counted."""
        for table in self.tables:
            table.reset()
        self.table.column("time").fill_(start)

    @property
    def tables(self) -> tuple[NodeTable, ...]:
        """All that it remembers."""
        return self.table, self.messages

    def forward(self, nodes: Tensor) -> Updated:
        """The states of ``nodes`` ``(M,)``, distinct and ascending; nothing is changed."""
        before, last = self.table.column("state")[nodes], self.table.column("time")[nodes]
        changed = self.messages.waiting[nodes]
        time = torch.where(changed, self.messages.time[nodes], last)
        elapsed = time - last
        message = torch.cat([before, self.messages.message[nodes], self.encode(elapsed)], 1)
        states = torch.where(changed[:, None], self.cell(self.message(message), before).to(before.dtype), before)
        return Updated(nodes, states, time, before, elapsed, changed)

    def advance(
        self,
        updated: Updated,
        source: Tensor,
        destination: Tensor,
        time: Tensor,
        features: Tensor | None = None,
        labels: Tensor | None = None,
        ends: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Keep the states of the nodes of these events, and their new messages, without gradient.

        Args:
            updated: what `forward` returned, for at least these nodes.
            source, destination, time, features: of the events, in order.
            labels: of the events; TGN's memory does not look at them.
            ends: ``last_rows(alternating(source, destination))`` where that is known.
        """
        if (features is None) != (self.edge_width == 0) or (features is not None and features.shape[1] != self.edge_width):
            found = 0 if features is None else features.shape[1]
            raise InputError(f"events with {found} features, expected {self.edge_width}")
        nodes, last = ends or last_rows(alternating(source, destination))
        rows, event = updated.rows(nodes), last // 2
        self.table.write(nodes, state=updated.states[rows].detach(), time=updated.time[rows])
        messages = self.table.column("state")[alternating(destination, source)[last]]
        if features is not None:
            messages = torch.cat([messages, features[event].to(messages.dtype)], 1)
        self.messages.write(nodes, message=messages, time=time[event], waiting=torch.ones_like(nodes, dtype=torch.bool))
