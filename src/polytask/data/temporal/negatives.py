"""Pairs that have no event: what a model has to tell from those that have one."""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.data.graph.links import distinct
from polytask.data.temporal.events import Events
from polytask.errors import InputError, suggest
from polytask.nn.graph import first_rows

NEGATIVES = ("random", "historical", "inductive")
"""The kinds of negatives, from the easiest to the hardest."""


class Negatives:
    """Draws one pair for each event of a batch.

    - ``"random"``: the event's own source with a destination that is uniform among all destinations up to the end of
      ``events``; that pair may have an event itself, as is customary.
    - ``"historical"``: pairs that had an event before the batch and have none in it, uniform, each at most once. Where there
      are fewer than events in the batch, the rest is random.
    - ``"inductive"``: the same among pairs that had none in ``known``.

    The last two are those of Poursafaei et al., *Towards better evaluation for dynamic link prediction*, NeurIPS 2022.

    Args:
        events: whose batches are drawn for.
        past: the events before them.
        known: the training events; by default ``past``, or none.
        kind: one of `NEGATIVES`.
        destinations: to draw from at random; by default those up to the end of ``events``.
    """

    def __init__(
        self,
        events: Events,
        past: Events | None = None,
        known: Events | None = None,
        kind: str = "random",
        destinations: Tensor | None = None,
    ) -> None:
        if kind not in NEGATIVES:
            raise InputError(f"unknown negatives {kind!r}: {suggest(kind, NEGATIVES)}")
        self.events, self.kind = events, kind
        self.before = 0 if past is None else len(past)
        whole = events if past is None else Events.joined([past, events])
        self.destinations = torch.unique(whole.destination) if destinations is None else destinations
        if kind == "random":
            return
        known = known or past
        pairs, first = first_rows(whole.pairs)
        if kind == "inductive" and known is not None:
            new = ~torch.isin(pairs, known.pairs)
            pairs, first = pairs[new], first[new]
        self.first, order = first.sort()
        self.by_age = pairs[order]  # a pair's rank is how many had their first event before it
        self.pairs = pairs
        self.rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))

    def draw(self, start: int, stop: int, generator: torch.Generator) -> tuple[Tensor | None, Tensor]:
        """Sources, ``None`` for the events' own, and destinations, ``(stop - start,)`` int64, for these events."""
        count = stop - start
        chance = torch.randint(len(self.destinations), (count,), generator=generator)
        destination = self.destinations[chance]
        if self.kind == "random":
            return None, destination
        old = int(torch.searchsorted(self.first, self.before + start))
        now = torch.unique(self.events.pairs[start:stop])
        now = self.rank[torch.isin(self.pairs, now)]
        taken = now[now < old].sort().values
        free = old - len(taken)
        found = self.by_age[distinct(free, min(count, free), generator, taken)]
        source = self.events.source[start:stop].clone()
        source[: len(found)], destination[: len(found)] = found // self.events.nodes, found % self.events.nodes
        return source, destination
