"""Events in batches, in their order, each with as many pairs that have no event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from polytask.data.stream import generator
from polytask.data.temporal.events import Events
from polytask.data.temporal.negatives import Negatives
from polytask.errors import InputError
from polytask.nn.graph import alternating, last_rows


class EventBatch:
    """Some consecutive events.

    It is neither a tuple nor a dataclass, because mixed precision makes float32 of all floats in those, and times would lose
    their seconds.

    Attributes:
        source, destination: ``(B,)`` int64.
        time: ``(B,)`` float64, never falling.
        features: ``(B, F)`` or ``None``.
        labels: ``(B,)`` or ``None``.
        negative: ``(B,)`` int64, destinations that have no event, or only one that is not known of.
        negative_source: ``(B,)`` int64, the sources of these pairs; ``None`` where they are ``source``.
        position: the place of the first event in the whole stream.
    """

    def __init__(
        self,
        source: Tensor,
        destination: Tensor,
        time: Tensor,
        features: Tensor | None = None,
        labels: Tensor | None = None,
        negative: Tensor | None = None,
        negative_source: Tensor | None = None,
        position: int = 0,
    ) -> None:
        self.source, self.destination, self.time = source, destination, time
        self.features, self.labels = features, labels
        self.negative = destination[:0] if negative is None else negative
        self.negative_source, self.position = negative_source, position
        self._ends: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls,
        events: Events,
        part: slice,
        negative: Tensor | None = None,
        negative_source: Tensor | None = None,
        position: int = 0,
    ) -> EventBatch:
        """The batch of a part of some events."""
        features = None if events.features is None else events.features[part]
        labels = None if events.labels is None else events.labels[part]
        columns = events.source[part], events.destination[part], events.time[part], features, labels
        return cls(*columns, negative, negative_source, position)

    def __len__(self) -> int:
        return len(self.time)

    @property
    def columns(self) -> dict[str, Any]:
        """What it was made of, by name."""
        return {name: value for name, value in vars(self).items() if name != "_ends"}

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The distinct nodes ``(M,)`` of the events, ascending, and where each stands last in ``alternating(source,
        destination)``, ``(M,)``: ``place // 2`` is its last event. Found once."""
        if self._ends is None:
            self._ends = last_rows(alternating(self.source, self.destination))
        return self._ends

    @property
    def begins(self) -> bool:
        """Whether nothing was before these events, so that a model forgets what it has seen."""
        return self.position == 0

    def to(self, device: torch.device | str) -> Self:
        """The same on ``device``."""
        moved: dict[str, Any] = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in self.columns.items()}
        return type(self)(**moved)


class EventBatches:
    """A stream of `EventBatch`: all events in their order, the last batch as long as what is left; negatives are new in
    each epoch, and a function of the seed, the epoch and the batch.

    A model that keeps a state goes through it in this order. It begins anew at the first batch of a stream without
    ``past``, and goes on from where it stands at that of a stream with one, or one of which it has seen ``before``.

    Args:
        events: at least one.
        batch_size: events in a batch.
        past: what came before, for the negatives.
        known: the training events, for inductive negatives.
        negatives: one of `polytask.data.temporal.NEGATIVES`.
        seed: of the negatives.
        before: how many events came before, where ``past`` is not at hand.
        destinations: of random negatives; by default those of ``past`` and ``events``.
    """

    def __init__(
        self,
        events: Events,
        batch_size: int = 200,
        *,
        past: Events | None = None,
        known: Events | None = None,
        negatives: str = "random",
        seed: int = 0,
        before: int = 0,
        destinations: Tensor | None = None,
    ) -> None:
        if batch_size < 1 or len(events) == 0:
            raise InputError(f"{events.name}: {len(events)} events in batches of {batch_size}, expected at least 1 of each")
        if past is not None and len(past) and past.time[-1] > events.time[0]:
            raise InputError(
                f"{events.name}: row {int(events.rows[0])}: time {events.time[0].item()} before the end of the past, "
                f"{past.time[-1].item()} in row {int(past.rows[-1])}, expected events after it"
            )
        self.events, self.batch_size, self.seed = events, batch_size, seed
        self.negatives = Negatives(events, past, known, negatives, destinations)
        self.before = before + self.negatives.before

    def __len__(self) -> int:
        return -(-len(self.events) // self.batch_size)

    def epoch(self, number: int, skip: int = 0) -> Iterator[EventBatch]:
        events = self.events
        for k in range(skip, len(self)):
            start, stop = k * self.batch_size, min((k + 1) * self.batch_size, len(events))
            sources, negative = self.negatives.draw(start, stop, generator(self.seed, number, k))
            yield EventBatch.of(events, slice(start, stop), negative, sources, self.before + start)
