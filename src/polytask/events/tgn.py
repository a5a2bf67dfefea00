"""Temporal graph networks as a module that `polytask.fit` trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polytask.data.temporal import EventBatch
from polytask.errors import InputError, suggest
from polytask.events.model import EventModel
from polytask.events.settings import EventSettings, event_models
from polytask.nn.graph import (
    Around,
    AttentionEmbedding,
    IdentityEmbedding,
    NodeTable,
    RecentNeighbours,
    TemporalMemory,
    TimeProjection,
    Updated,
)

EMBEDDINGS = ("attention", "identity", "time")


class Embedded(NamedTuple):
    """Nodes at a time.

    Attributes:
        h: ``(Q, width)`` their embeddings.
        updated: the states behind them.
    """

    h: Tensor
    updated: Updated


class TGN(EventModel):
    """Predicts the next events of a stream, as Rossi et al., *Temporal graph networks for deep learning on dynamic
    graphs*, 2020: a batch's nodes are embedded from their states and what was before it.

    Args:
        memory: of the nodes.
        embedding: of nodes at a time, from their states.
        neighbours: how many of its last events the embedding sees of a node; 0 for an embedding by the state alone.
    """

    def __init__(self, memory: TemporalMemory, embedding: nn.Module, neighbours: int = 10) -> None:
        super().__init__()
        self.memory, self.embedding = memory, embedding
        self.recent = RecentNeighbours(memory.nodes, neighbours, memory.edge_width) if neighbours else None
        self.decoder = nn.Sequential(nn.Linear(2 * memory.width, memory.width), nn.ReLU(), nn.Linear(memory.width, 1))

    @property
    def tables(self) -> list[NodeTable]:
        return [*self.memory.tables, *([self.recent] if self.recent is not None else []), self.clock]

    def reset(self, start: float = 0.0) -> None:
        super().reset(start)
        self.memory.reset(start)

    def read(self, nodes: Tensor, time: Tensor) -> Embedded:
        recent = None if self.recent is None else self.recent.of(nodes)
        wanted = nodes if recent is None else torch.cat([nodes, recent.neighbours.flatten()])
        distinct, rows = torch.unique(wanted, return_inverse=True)
        updated: Updated = self.memory(distinct)
        rows, others = rows[: len(nodes)], rows[len(nodes) :]
        around = None
        if recent is not None:
            states = updated.states.index_select(0, others).view(*recent.neighbours.shape, -1)
            around = Around(states, recent.features, time[:, None] - recent.time, recent.there)
        return Embedded(self.embedding(updated.states.index_select(0, rows), time - updated.time[rows], around), updated)

    def logits(self, found: Embedded, left: Tensor, right: Tensor) -> Tensor:
        logits: Tensor = self.decoder(torch.cat([found.h.index_select(0, left), found.h.index_select(0, right)], 1))[:, 0]
        return logits

    def write(self, batch: EventBatch, found: Embedded) -> None:
        events = batch.source, batch.destination, batch.time, batch.features, batch.labels
        self.memory.advance(found.updated, *events, batch.ends)
        if self.recent is not None:
            self.recent.meet(batch.source, batch.destination, batch.time, batch.features)


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


@event_models.add("tgn")
@dataclass(frozen=True)
class TGNSettings(EventSettings):
    """TGN whose embedding attends to a node's last events.

    Args:
        width: of a state.
        neighbours: how many of its last events the embedding sees of a node.
    """

    width: int = 72
    neighbours: int = 10

    def build(self) -> TGN:
        memory = TemporalMemory(self.nodes, self.width, edge_width=self.edge_width)
        return tgn(memory, neighbours=self.neighbours)
