"""Splits of a stream by time, and nodes that training never sees."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polytask.data.examples import PARTS
from polytask.data.stream import generator
from polytask.data.temporal.batches import EventBatches
from polytask.data.temporal.events import Events
from polytask.errors import InputError, suggest


@dataclass(frozen=True, eq=False)
class EventSplit:
    """Events to train on, to select by, and to report by, one after the other in time.

    Attributes:
        train, validation, test: the events; events of the same time are never divided.
        hidden: nodes that neither training nor validation events touch, and every test event does; ``None`` without such.
    """

    train: Events
    validation: Events
    test: Events
    hidden: Tensor | None = None

    def batches(self, part: str, batch_size: int = 200, negatives: str = "random", seed: int = 0) -> EventBatches:
        """One of ``"train"``, ``"validation"`` and ``"test"`` as a stream that knows the parts before it."""
        if part not in PARTS:
            raise InputError(f"unknown part {part!r}: {suggest(part, PARTS)}")
        before = [getattr(self, name) for name in PARTS[: PARTS.index(part)]]
        past = Events.joined(before) if before else None
        return EventBatches(getattr(self, part), batch_size, past=past, known=self.train, negatives=negatives, seed=seed)


def split_events(events: Events, validation: float = 0.15, test: float = 0.15) -> EventSplit:
    """A split at quantiles of time: by default training ends with the 0.70 quantile, validation with the 0.85 quantile.

    An event of exactly a quantile's time belongs to the earlier part.

    Raises:
        InputError: a part that would be empty.
    """
    if min(validation, test) <= 0 or validation + test >= 1:
        raise InputError(f"shares {validation:g} and {test:g}, expected more than 0, and a sum below 1")
    if len(events) == 0:
        raise InputError(f"{events.name}: no events to split, expected at least 3")
    bounds = torch.tensor([1 - validation - test, 1 - test], dtype=torch.float64)
    # Not torch.quantile, which refuses more than 16 million values; the times are in order.
    place = bounds * (len(events) - 1)
    low, high = events.time[place.floor().long()], events.time[place.ceil().long()]
    ends = torch.searchsorted(events.time, low + (high - low) * place.frac(), right=True).tolist()
    sizes = [ends[0], ends[1] - ends[0], len(events) - ends[1]]
    if min(sizes) == 0:
        found = ", ".join(f"{size} for {part}" for part, size in zip(PARTS, sizes, strict=True))
        raise InputError(f"{events.name}: {len(events)} events split by time make {found}, expected at least 1 each")
    return EventSplit(events[: ends[0]], events[ends[0] : ends[1]], events[ends[1] :])


def hide_nodes(split: EventSplit, share: float = 0.1, seed: int = 0) -> EventSplit:
    """The inductive split: some nodes are hidden from training, and test events are those that touch one of them.

    Hidden are ``share`` of all nodes that have an event, rounded down, drawn among those with an event after training's end.

    Args:
        split: by time.
        share: of the nodes.
        seed: of the draw.

    Raises:
        InputError: fewer nodes after training's end than that, none to hide, or a part that would be empty.
    """
    later = torch.unique(torch.cat([e for part in (split.validation, split.test) for e in (part.source, part.destination)]))
    seen = torch.unique(torch.cat([later, split.train.source, split.train.destination]))
    count = int(share * len(seen))
    name = split.train.name
    if not 1 <= count <= len(later):
        raise InputError(
            f"{name}: {share:g} of {len(seen)} nodes are {count} to hide, expected 1 to {len(later)}, the nodes with an "
            "event after training's end"
        )
    hidden = later[torch.randperm(len(later), generator=generator(seed, 0))[:count]].sort().values
    found = {part: getattr(split, part) for part in PARTS}
    chosen = {part: events[events.touches(hidden) == (part == "test")] for part, events in found.items()}
    for part, events in chosen.items():
        if len(events) == 0:
            raise InputError(f"{name}: with {count} nodes hidden no events are left for {part}, expected at least 1")
    return replace(split, **chosen, hidden=hidden)
