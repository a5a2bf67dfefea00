"""Scores of the next events without learning: what a network must exceed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polytask.data.temporal import EventBatches, Events
from polytask.nn.graph import CSR, adjacency, common_neighbours

Score = Callable[[Tensor, Tensor], Tensor]


def edge_bank(past: Events) -> Score:
    """1 for a pair that has had an event, in either direction, else 0.

    Poursafaei et al., *Towards better evaluation for dynamic link prediction*, NeurIPS 2022, with unlimited memory.
    """
    nodes = past.nodes
    seen = torch.unique(torch.cat([past.pairs, past.destination * nodes + past.source]))
    return lambda source, destination: torch.isin(source * nodes + destination, seen).float()


def common_count(past: Events) -> Score:
    """How many nodes have had an event with both."""
    graph: CSR = adjacency(torch.stack([past.source, past.destination], 1), past.nodes)
    return lambda source, destination: common_neighbours(graph, torch.stack([source, destination], 1)).degrees.float()


HEURISTICS: dict[str, Callable[[Events], Score]] = {"edge bank": edge_bank, "common neighbours": common_count}


def scores(kind: str, events: EventBatches, past: Events) -> list[tuple[Tensor, Tensor]]:
    """For each batch the scores of its events and of its negatives, from ``past`` and all batches before it."""
    found, stream = [], events.events
    whole, first = Events.joined([past, stream]), len(past)
    for batch in events.epoch(0):
        score = HEURISTICS[kind](whole[:first])
        sources = batch.source if batch.negative_source is None else batch.negative_source
        found.append((score(batch.source, batch.destination), score(sources, batch.negative)))
        first += len(batch)
    return found
