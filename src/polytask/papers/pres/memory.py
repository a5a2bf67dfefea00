"""TGN's memory with a prediction of each state and its correction by what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.nn.graph import NodeTable, TemporalMemory, Updated, alternating, last_rows
from polytask.papers.pres.increments import Increments

SPANS = ("time", "gap", "update")


class PresMemory(TemporalMemory):
    """A memory that large batches disturb less.

    Of a batch's events only a node's last one reaches its state, and that one was made before the others could act. So the
    cell's output ``s`` counts as a noisy measurement, and is mixed with a prediction:

        p = s(t1) + (t2 - t1) increment,        state = (1 - gate) p + gate s,

    where the increment is the mean of `Increments` so far, or drawn from it. The increment that results,
    ``(state - s(t1)) / (t2 - t1)``, is observed in turn, without gradient. With a gate of 1 this is TGN.

    A node of which nothing was observed has no prediction, and an event at the time of the one before it shows no increment.
    No state of either cell leaves [-1, 1], and a prediction is held there too. How the authors treat these three cases,
    and where their gate starts, is not known.

    Args:
        nodes, width, settings: as for `polytask.nn.graph.TemporalMemory`.
        components: of the mixture of increments; an event's label, rounded down, says which one it belongs to (from 0; the
            paper's two are for positive and negative interactions), and without labels all belong to the first.
        gate: at first, from 0 to 1; it is learned between these, and stays where it is when it is 0 or 1.
        span: what ``t2 - t1`` is counted in: ``"time"``; the node's mean ``"gap"`` between events so far; or an
            ``"update"``, which makes it 1. Where gaps span many orders of magnitude, a mean of quotients by time is that of
            the shortest gaps, and carries a state away in a long one.
        drawn: in training the increment is drawn; otherwise, and in evaluation, it is the mean.
        anchors: ``(A,)`` the nodes that have predictions, for a smaller memory; ``None``: all.
    """

    def __init__(
        self,
        nodes: int,
        width: int = 172,
        *,
        components: int = 2,
        gate: float = 0.5,
        span: str = "time",
        drawn: bool = False,
        anchors: Tensor | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(nodes, width, **settings)
        if not 0 <= gate <= 1:
            raise InputError(f"a gate of {gate}, expected 0 to 1")
        if span not in SPANS:
            raise InputError(f"span {span!r}, expected one of {', '.join(map(repr, SPANS))}")
        self.span, self.drawn, self._measured = span, drawn, False
        self.increments = Increments(nodes, width, components, anchors)
        self.waiting = NodeTable(nodes, component=((), torch.int64), updates=((), torch.int64), elapsed=((), torch.float64))
        self.logit = nn.Parameter(torch.tensor(float(gate)).logit())

    @property
    def tables(self) -> tuple[NodeTable, ...]:
        return *super().tables, self.increments, self.waiting

    @property
    def gate(self) -> Tensor:
        """The weight of what was measured, between 0 and 1."""
        return self.logit.sigmoid()

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Inside, states are as the cell has them, without a correction."""
        self._measured = True
        try:
            yield
        finally:
            self._measured = False

    def spans(self, updated: Updated) -> Tensor:
        """``(M,)`` float32: the time from each node's last update to this one, in the unit of `span`."""
        if self.span == "update":
            return updated.changed.float()
        if self.span == "time":
            return updated.elapsed.float()
        updates, elapsed = (self.waiting.column(name)[updated.nodes] for name in ("updates", "elapsed"))
        gap = (elapsed + updated.elapsed) / (updates + 1)
        return (updated.elapsed / gap.clamp(min=torch.finfo(torch.float64).tiny)).float()

    def predicted(self, updated: Updated) -> tuple[Tensor, Tensor]:
        """``(M, width)`` predictions of the states, and ``(M,)`` for which nodes there is one."""
        rate, known = (self.increments.draw if self.drawn and self.training else self.increments.mean)(updated.nodes)
        moved = torch.addcmul(updated.before, self.spans(updated)[:, None], rate)
        return moved.clamp_(-1, 1), known & updated.changed

    def forward(self, nodes: Tensor) -> Updated:
        updated = super().forward(nodes)
        if self._measured:
            return updated
        predicted, known = self.predicted(updated)
        weight = torch.where(known, self.gate, 1.0).to(predicted.dtype)[:, None]
        return updated._replace(states=torch.lerp(predicted, updated.states, weight))

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
        nodes, last = ends = ends or last_rows(alternating(source, destination))
        rows = updated.rows(nodes)
        entered = Updated(*(column.index_select(0, rows) for column in updated))
        some = entered.elapsed > 0
        moved = (entered.states.detach() - entered.before) / self.spans(entered)[:, None]
        moved = torch.where(some[:, None], moved, 0.0)  # no time shows no increment
        self.increments.add(nodes, moved, self.waiting.column("component")[nodes], some)
        if self.span == "gap":
            self.waiting.column("updates")[nodes] += some
            self.waiting.column("elapsed")[nodes] += entered.elapsed.clamp(min=0)
        super().advance(updated, source, destination, time, features, ends=ends)
        if labels is not None:
            component = labels.long().clamp(0, self.increments.components - 1)
            self.waiting.write(nodes, component=component[last // 2])


def incoherence(before: Tensor, after: Tensor) -> Tensor:
    """``1 - <S-, S> / (|S-| |S|)`` of states ``(M, width)`` before and after their update: 0 where all are stretched alike,
    2 where they are turned around."""
    return 1 - F.cosine_similarity(before.flatten(), after.flatten(), 0)
