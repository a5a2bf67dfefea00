"""TGN with PRES's loss, and what large batches do to a memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polytask.data.temporal import EventBatch, EventBatches, Events
from polytask.errors import InputError
from polytask.nn.graph import TemporalMemory
from polytask.papers._tgn import TGN, Embedded, node_embedding
from polytask.papers.pres.memory import PresMemory, incoherence


class PRES(TGN):
    """TGN with a third loss, ``"coherence"``: ``beta`` times how far the states of the batch's nodes turn in their update.

    Args:
        memory, embedding, neighbours: as for TGN; a `PresMemory` predicts and corrects.
        beta: the weight of that loss; 0 leaves it out.
    """

    def __init__(self, memory: TemporalMemory, embedding: nn.Module, neighbours: int = 10, beta: float = 0.1) -> None:
        if beta < 0:
            raise InputError(f"beta {beta}, expected at least 0")
        super().__init__(memory, embedding, neighbours)
        self.beta = beta

    @property
    def tasks(self) -> tuple[str, ...]:
        return (*super().tasks, "coherence") if self.beta else super().tasks

    def auxiliary(self, batch: EventBatch, found: Embedded) -> dict[str, Tensor]:
        if not self.beta:
            return {}
        updated = found.updated
        rows = updated.rows(torch.unique(torch.cat([batch.source, batch.destination])))
        return {"coherence": self.beta * incoherence(updated.before[rows], updated.states[rows])}


def pres(
    nodes: int,
    width: int = 172,
    embedding: str = "attention",
    *,
    gate: float = 0.5,
    beta: float = 0.1,
    components: int = 2,
    edge_width: int = 0,
    time_width: int | None = None,
    message_width: int | None = None,
    cell: str = "gru",
    **settings: Any,
) -> PRES:
    """PRES on TGN; with ``gate=1`` and ``beta=0`` it is TGN.

    Args:
        nodes, width, edge_width, time_width, message_width, cell: of the memory; the authors' messages have width 100.
        embedding, settings: ``"attention"`` (with ``neighbours``, ``heads``, ``dropout``), ``"identity"``, or
            ``"time"`` (with ``gap``, the mean time between a node's events).
        gate, components: of `PresMemory`.
        beta: of `PRES`.
    """
    memory = PresMemory(
        nodes,
        width,
        components=components,
        gate=gate,
        edge_width=edge_width,
        time_width=time_width,
        message_width=message_width,
        cell=cell,
    )
    return PRES(memory, *node_embedding(memory, embedding, **settings), beta)


def pending(source: Tensor, destination: Tensor) -> Tensor:
    """``(B,)`` int64: for each event of a batch how many earlier ones share a node with it, which a batch ignores."""
    ends = torch.stack([source, destination], 1)
    shared = (ends[:, None, :, None] == ends[None, :, None, :]).flatten(2).any(2)
    return shared.tril(-1).sum(1)


@torch.no_grad()
def distortion(model: TGN, events: Events, batch_size: int) -> float:
    """How far batches leave the states from those of one event at a time, with the same weights and from the same state:
    the norm of the difference of all nodes' states over the norm of the latter."""
    nodes = torch.arange(model.memory.nodes, device=model.clock.column("time").device)
    found = []
    for size in (batch_size, 1):
        with model.kept():
            # The past is that this state has seen: without one the stream would begin anew.
            model.observe(EventBatches(events, size, past=events[:1]))
            found.append(model.memory(nodes).states)
    return float((found[0] - found[1]).norm() / found[1].norm())
