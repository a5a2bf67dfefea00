"""Temporal graph networks as a module that `polytask.fit` trains: the common ground of papers on streams of events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.data.temporal import EventBatch, EventBatches
from polytask.errors import InputError, suggest
from polytask.measure import pooled
from polytask.nn.graph import (
    Around,
    AttentionEmbedding,
    IdentityEmbedding,
    NodeTable,
    RecentNeighbours,
    Snapshot,
    TemporalMemory,
    TimeProjection,
    Updated,
)

EMBEDDINGS = ("attention", "identity", "time")


class TGN(nn.Module):
    """Predicts the next events of a stream, as Rossi et al., *Temporal graph networks for deep learning on dynamic
    graphs*, 2020.

    A batch is a `polytask.data.temporal.EventBatch`. Its nodes are embedded from what was before it; the loss is the sum of
    ``softplus(-s)``, the mean over its events, and ``softplus(s)``, the mean over its negatives. Then its events enter the
    memory: the state goes on from batch to batch, and begins anew with a batch that begins its stream. A batch that comes
    again at once, as where a balancer looks twice, is computed from the state before it. The state is part of the state
    dict: a checkpoint goes on from it, and the best weights of a run come with the state that they had.

    `evaluate` and `score` leave the state as it was; `observe` lets events enter it. In a run, evaluate at the end of an
    epoch (``evaluate_every=len(batches)``), where validation events follow what the memory has seen. Of several processes
    each needs the whole stream.

    Args:
        memory: of the nodes.
        embedding: of nodes at a time, from their states.
        neighbours: how many of its last events the embedding sees of a node; 0 for an embedding by the state alone.
    """

    def __init__(self, memory: TemporalMemory, embedding: nn.Module, neighbours: int = 10) -> None:
        super().__init__()
        self.memory, self.embedding = memory, embedding
        self.recent = RecentNeighbours(memory.nodes, neighbours, memory.edge_width) if neighbours else None
        self.clock = NodeTable(1, time=((), torch.float64))
        self.decoder = nn.Sequential(nn.Linear(2 * memory.width, memory.width), nn.ReLU(), nn.Linear(memory.width, 1))
        self._last: tuple[int, list[Snapshot]] | None = None

    @property
    def tables(self) -> list[NodeTable]:
        """The state: all that it remembers of a stream."""
        return [*self.memory.tables, *([self.recent] if self.recent is not None else []), self.clock]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the losses."""
        return ("links", "others")

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All of them: every loss trains every parameter."""
        return self.parameters()

    def label_counts(self, batch: EventBatch) -> dict[str, Tensor]:
        """How many pairs each loss is the mean of."""
        return {name: torch.tensor(float(len(batch)), device=self.clock.column("time").device) for name in self.tasks}

    def losses(self, batch: EventBatch) -> dict[str, Tensor]:
        """``{"links": ..., "others": ...}``: the mean loss of the events, and of the negatives; the state advances.

        Raises:
            InputError: events before those that the state has seen.
        """
        batch = self._enter(batch)
        positive, negative, updated = self._scored(batch)
        losses = {"links": F.softplus(-positive).mean(), "others": F.softplus(negative).mean()}
        losses |= self.auxiliary(batch, updated)
        self._leave(batch, updated)
        return losses

    def auxiliary(self, batch: EventBatch, updated: Updated) -> dict[str, Tensor]:
        """Further losses, none here; ``updated`` are the states that the batch was embedded from."""
        return {}

    @torch.no_grad()
    def score(self, source: Tensor, destination: Tensor, time: Tensor) -> Tensor:
        """``(B,)`` logits of an event from ``source`` to ``destination`` ``(B,)`` at ``time`` ``(B,)``, by what was seen."""
        h, _ = self._embedded(torch.cat([source, destination]), time.double().repeat(2))
        logits: Tensor = self.decoder(torch.cat(h.chunk(2), 1))[:, 0]
        return logits

    @torch.no_grad()
    def observe(self, events: EventBatches) -> None:
        """Let events enter the state, batch by batch, without training."""
        self._last = None
        for given in events.epoch(0):
            batch = self._enter(given)
            _, updated = self._embedded(torch.cat([batch.source, batch.destination]), batch.time.repeat(2))
            self._leave(batch, updated)
        self._last = None  # what was observed once is not undone by the same events

    @torch.no_grad()
    def evaluate(self, events: EventBatches) -> dict[str, dict[str, float]]:
        """``{"links": {"ap": ..., "auc": ...}}``, of all scores together, higher is better; what `polytask.fit` can monitor.

        Batch by batch the events enter the state, which is put back at the end. Call ``eval()`` first.
        """
        positive, negative = [], []
        with self.kept():
            for given in events.epoch(0):
                batch = self._enter(given)
                true, false, updated = self._scored(batch)
                self._leave(batch, updated)
                positive.append(true.float())
                negative.append(false.float())
        return {"links": pooled(torch.cat(positive), torch.cat(negative))}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What happens to the state inside is undone at the end."""
        before, self._last = [table.snapshot() for table in self.tables], None
        try:
            yield
        finally:
            self._put_back(before)

    def reset(self, start: float = 0.0) -> None:
        """Forget the stream; another one begins at time ``start``."""
        for table in self.tables:
            table.reset()
        self.memory.reset(start)
        self.clock.column("time").fill_(start)

    def _put_back(self, snapshots: list[Snapshot]) -> None:
        self._last = None
        for table, snapshot in zip(self.tables, snapshots, strict=True):
            table.restore(snapshot)

    def _enter(self, batch: EventBatch) -> EventBatch:
        """The batch on this module's device, and the state as it was before the batch."""
        batch = batch.to(self.clock.column("time").device)
        if batch.begins:
            self.reset(float(batch.time[0]))
        elif self._last is not None and self._last[0] == batch.position:
            self._put_back(self._last[1])
        elif batch.time[0] < self.clock.column("time")[0]:
            seen = float(self.clock.column("time")[0])
            raise InputError(
                f"event {batch.position + 1}: time {float(batch.time[0])} before {seen}, which the memory has seen, "
                "expected events after it: reset() begins anew"
            )
        return batch

    def _leave(self, batch: EventBatch, updated: Updated) -> None:
        """Let the batch's events enter the state."""
        nodes = torch.unique(torch.cat([batch.source, batch.destination]))
        only = torch.zeros_like(nodes[:1])
        before = [table.snapshot(only if table is self.clock else nodes) for table in self.tables]
        self._last = (batch.position, before)
        self.memory.advance(updated, batch.source, batch.destination, batch.time, batch.features, batch.labels)
        if self.recent is not None:
            self.recent.meet(batch.source, batch.destination, batch.time, batch.features)
        self.clock.write(only, time=batch.time[-1:])

    def _scored(self, batch: EventBatch) -> tuple[Tensor, Tensor, Updated]:
        """``(B,)`` logits of the events, and of the negatives; and the states that they are computed from."""
        nodes = [batch.source, batch.destination, batch.negative]
        nodes += [] if batch.negative_source is None else [batch.negative_source]
        h, updated = self._embedded(torch.cat(nodes), batch.time.repeat(len(nodes)))
        source, destination, negative, *others = h.chunk(len(nodes))
        pairs = [torch.cat([source, destination], 1), torch.cat([others[0] if others else source, negative], 1)]
        positive, false = self.decoder(torch.cat(pairs))[:, 0].chunk(2)
        return positive, false, updated

    def _embedded(self, nodes: Tensor, time: Tensor) -> tuple[Tensor, Updated]:
        """Embeddings ``(Q, width)`` of ``nodes`` ``(Q,)`` at ``time`` ``(Q,)``, and the states behind them."""
        recent = None if self.recent is None else self.recent.of(nodes)
        wanted = nodes if recent is None else torch.cat([nodes, recent.neighbours.flatten()])
        updated: Updated = self.memory(torch.unique(wanted))
        rows, around = updated.rows(nodes), None
        if recent is not None:
            states = updated.states[updated.rows(recent.neighbours)]
            around = Around(states, recent.features, time[:, None] - recent.time, recent.there)
        h: Tensor = self.embedding(updated.states[rows], time - updated.time[rows], around)
        return h, updated


def tgn(memory: TemporalMemory, embedding: str = "attention", **settings: Any) -> TGN:
    """A TGN on a memory; ``settings`` are those of `node_embedding`."""
    return TGN(memory, *node_embedding(memory, embedding, **settings))


def node_embedding(
    memory: TemporalMemory, kind: str = "attention", *, neighbours: int = 10, gap: float = 1.0, **settings: Any
) -> tuple[nn.Module, int]:
    """An embedding of the memory's nodes, and how many of their last events it sees.

    Args:
        memory: of the nodes.
        kind: ``"attention"`` over the last events, ``"identity"``, or ``"time"``, by which states drift.
        neighbours: of ``"attention"``: how many events.
        gap: of ``"time"``: the mean time between a node's events.
        settings: of `polytask.nn.graph.AttentionEmbedding`: ``heads``, ``dropout``.
    """
    if kind not in EMBEDDINGS:
        raise InputError(f"unknown embedding {kind!r}: {suggest(kind, EMBEDDINGS)}")
    if kind == "attention":
        return AttentionEmbedding(memory.width, memory.encode, memory.edge_width, **settings), neighbours
    return IdentityEmbedding() if kind == "identity" else TimeProjection(memory.width, gap), 0
