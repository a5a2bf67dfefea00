"""TGN's memory with a prediction of each state and its correction by what was measured."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.nn.graph import NodeTable, TemporalMemory, Updated, alternating, last_rows
from polytask.papers.pres.increments import Increments


class PresMemory(TemporalMemory):
    """A memory that large batches disturb less.

    Of a batch's events only a node's last one reaches its state, and that one was made before the others could act. So the
    cell's output ``s`` counts as a noisy measurement, and is mixed with a prediction:

        p = s(t1) + (t2 - t1) mean increment,        state = (1 - gate) p + gate s,

    where the mean increment is that of `Increments` so far. The increment that results, ``(state - s(t1)) / (t2 - t1)``, is
    observed in turn, without gradient. With a gate of 1 this is TGN.

    A node of which nothing was observed has no prediction, and an event at the time of the one before it shows no increment.
    No state of either cell leaves [-1, 1], and a prediction is held there too, as a long gap would carry it far away. How
    the authors treat these three cases, and where their gate starts, is not known.

    Args:
        nodes, width, settings: as for `polytask.nn.graph.TemporalMemory`.
        components: of the mixture of increments; an event's label, rounded down, says which one it belongs to (from 0; the
            paper's two are for positive and negative interactions), and without labels all belong to the first.
        gate: at first, from 0 to 1; it is learned between these, and stays where it is when it is 0 or 1.
    """

    def __init__(self, nodes: int, width: int = 172, *, components: int = 2, gate: float = 0.5, **settings: Any) -> None:
        super().__init__(nodes, width, **settings)
        if not 0 <= gate <= 1:
            raise InputError(f"a gate of {gate}, expected 0 to 1")
        self.increments = Increments(nodes, width, components)
        self.waiting = NodeTable(nodes, component=((), torch.int64))
        self.logit = nn.Parameter(torch.tensor(float(gate)).logit())

    @property
    def tables(self) -> tuple[NodeTable, ...]:
        return *super().tables, self.increments, self.waiting

    @property
    def gate(self) -> Tensor:
        """The weight of what was measured, between 0 and 1."""
        return self.logit.sigmoid()

    def predicted(self, updated: Updated) -> tuple[Tensor, Tensor]:
        """``(M, width)`` predictions of the states, and ``(M,)`` for which nodes there is one."""
        rate, known = self.increments.mean(updated.nodes)
        moved = updated.before + updated.elapsed.to(rate.dtype)[:, None] * rate
        return moved.clamp(-1, 1), known & updated.changed

    def forward(self, nodes: Tensor) -> Updated:
        updated = super().forward(nodes)
        predicted, known = self.predicted(updated)
        corrected = torch.lerp(predicted, updated.states, self.gate.to(predicted.dtype))
        return updated._replace(states=torch.where(known[:, None], corrected, updated.states))

    def advance(
        self,
        updated: Updated,
        source: Tensor,
        destination: Tensor,
        time: Tensor,
        features: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        nodes, last = last_rows(alternating(source, destination))
        rows = updated.rows(nodes)
        rows = rows[updated.changed[rows] & (updated.elapsed[rows] > 0)]
        moved = (updated.states[rows].detach() - updated.before[rows]).double() / updated.elapsed[rows, None]
        entered = updated.nodes[rows]
        self.increments.add(entered, moved.float(), self.waiting.column("component")[entered])
        super().advance(updated, source, destination, time, features)
        if labels is not None:
            component = labels.long().clamp(0, self.increments.components - 1).repeat_interleave(2)
            self.waiting.write(nodes, component=component[last])


def incoherence(before: Tensor, after: Tensor) -> Tensor:
    """``1 - <S-, S> / (|S-| |S|)`` of states ``(M, width)`` before and after their update: 0 where all are stretched alike,
    2 where they are turned around."""
    return 1 - F.cosine_similarity(before.flatten(), after.flatten(), 0)
