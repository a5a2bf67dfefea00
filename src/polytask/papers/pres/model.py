"""TGN with PRES's loss, and what large batches do to a memory."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polytask.data.temporal import EventBatch, EventBatches, Events
from polytask.errors import InputError
from polytask.events import TGN, Embedded, EventSettings, event_models, node_embedding
from polytask.nn.graph import TemporalMemory, Updated
from polytask.papers.pres.memory import PresMemory, incoherence
from polytask.papers.pres.released import ReleasedMemory, released_incoherence


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
        rows = updated.rows(batch.ends[0])
        before, after = updated.before[rows], updated.states[rows]
        if isinstance(self.memory, ReleasedMemory):
            return {"coherence": self.beta * released_incoherence(before, after, self.memory.nodes)}
        return {"coherence": self.beta * incoherence(before, after)}


def pres(
    nodes: int,
    width: int = 172,
    embedding: str = "attention",
    *,
    gate: float = 0.5,
    beta: float = 0.1,
    components: int = 2,
    span: str = "time",
    drawn: bool = False,
    anchors: Tensor | None = None,
    variant: str = "paper",
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
        gate, components, span, drawn, anchors: of `PresMemory`.
        beta: of `PRES`.
        variant: ``"paper"``, or ``"released"``, what the authors' code does: a `ReleasedMemory`, which has none of
            these settings, and a coherence without gradient.
    """
    if variant not in ("paper", "released"):
        raise InputError(f"variant {variant!r}, expected 'paper' or 'released'")
    common: dict[str, Any] = {
        "edge_width": edge_width,
        "time_width": time_width,
        "message_width": message_width,
        "cell": cell,
    }
    memory: TemporalMemory
    if variant == "released":
        memory = ReleasedMemory(nodes, width, **common)
    else:
        chosen = {"components": components, "gate": gate, "span": span, "drawn": drawn, "anchors": anchors}
        memory = PresMemory(nodes, width, **chosen, **common)  # type: ignore[arg-type]
    return PRES(memory, *node_embedding(memory, embedding, **settings), beta)


@event_models.add("pres")
@dataclass(frozen=True)
class PRESSettings(EventSettings):
    """PRES whose embedding attends to a node's last events.

    Args:
        width, neighbours, gate, beta, span: of `pres`.
    """

    width: int = 72
    neighbours: int = 10
    gate: float = 0.5
    beta: float = 0.1
    span: str = "time"

    def build(self) -> PRES:
        return pres(**asdict(self))


def pending(source: Tensor, destination: Tensor) -> Tensor:
    """``(B,)`` int64: for each event of a batch how many earlier ones share a node with it, which a batch ignores."""
    ends = torch.stack([source, destination], 1)
    shared = (ends[:, None, :, None] == ends[None, :, None, :]).flatten(2).any(2)
    return shared.tril(-1).sum(1)


@torch.no_grad()
def distortion(model: TGN, events: Events, batch_size: int, corrected: bool = True) -> float:
    """How far batches leave the states from those of one event at a time, with the same weights and from the same state:
    the norm of the difference of all nodes' states over the norm of the latter.

    One event at a time nothing is ignored, and nothing is to be corrected: there the states are the cell's alone.

    Args:
        model: with a state that is before ``events``.
        events: to go through.
        batch_size: of the batches.
        corrected: whether a `PresMemory` corrects what batches leave.
    """
    memory = model.memory
    nodes = torch.arange(memory.nodes, device=model.clock.column("time").device)

    def states(size: int) -> Tensor:
        with model.kept():
            # The past is that this state has seen: without one the stream would begin anew.
            model.observe(EventBatches(events, size, past=events[:1]))
            updated: Updated = memory(nodes)
        return updated.states

    def measured(size: int) -> Tensor:
        with memory.measured() if isinstance(memory, PresMemory) else nullcontext():
            return states(size)

    apart = measured(1)
    found = states(batch_size) if corrected else measured(batch_size)
    return float((found - apart).norm() / apart.norm())
