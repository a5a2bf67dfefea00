"""Models of a stream of events that `polytask.fit` trains: what all of them do between batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.data.temporal import EventBatch, EventBatches
from polytask.errors import InputError
from polytask.measure import pooled
from polytask.nn.graph import NodeTable, Snapshot


class EventModel(nn.Module):
    """Predicts the next events of a stream from tables that its events change.

    A batch is a `polytask.data.temporal.EventBatch`. Its pairs are scored from what was before it; the loss is the sum of
    ``softplus(-s)``, the mean over its events, and ``softplus(s)``, the mean over its negatives. Then its events enter the
    tables: the state goes on from batch to batch, and begins anew with a batch that begins its stream. A batch that comes
    again at once, as where a balancer looks twice, is computed from the state before it. The state is part of the state
    dict: a checkpoint goes on from it, and the best weights of a run come with the state that they had.

    `evaluate` and `score` leave the state as it was; `observe` lets events enter it. In a run, evaluate at the end of an
    epoch (``evaluate_every=len(batches)``), where validation events follow what the model has seen. Of several processes
    each needs the whole stream.

    A subclass has `tables`, says what it reads of them (`read`), how pairs are scored from that (`logits`), and how events
    enter them (`write`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = NodeTable(1, time=((), torch.float64), count=((), torch.int64))
        self._last: tuple[int, list[Snapshot]] | None = None

    @property
    def tables(self) -> Sequence[NodeTable]:
        """The state: all that it remembers of a stream; the last is the clock, the last event's time and number."""
        raise NotImplementedError

    def read(self, nodes: Tensor, time: Tensor) -> Any:
        """What the tables say of ``nodes`` ``(Q,)`` at ``time`` ``(Q,)``."""
        raise NotImplementedError

    def logits(self, found: Any, left: Tensor, right: Tensor) -> Tensor:
        """``(P,)`` logits of events between the nodes at places ``left`` and ``right`` ``(P,)`` of what was read."""
        raise NotImplementedError

    def write(self, batch: EventBatch, found: Any) -> None:
        """Let events enter the tables; ``found`` was read for their sources, then their destinations, then any others."""
        raise NotImplementedError

    def auxiliary(self, batch: EventBatch, found: Any) -> dict[str, Tensor]:
        """Further losses, none here; ``found`` is what was read for the batch."""
        return {}

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
        positive, negative, found = self._scored(batch)
        losses = {"links": F.softplus(-positive).mean(), "others": F.softplus(negative).mean()}
        losses |= self.auxiliary(batch, found)
        self._leave(batch, found)
        return losses

    @torch.no_grad()
    def score(self, source: Tensor, destination: Tensor, time: Tensor) -> Tensor:
        """``(B,)`` logits of an event from ``source`` to ``destination`` ``(B,)`` at ``time`` ``(B,)``, by what was seen."""
        found = self.read(torch.cat([source, destination]), time.double().repeat(2))
        place = torch.arange(len(source), device=source.device)
        return self.logits(found, place, place + len(source))

    @torch.no_grad()
    def observe(self, events: EventBatches) -> None:
        """Let events enter the state, batch by batch, without training."""
        self._last = None
        for given in events.epoch(0):
            batch = self._enter(given)
            self._leave(batch, self.read(torch.cat([batch.source, batch.destination]), batch.time.repeat(2)))
        self._last = None  # what was observed once is not undone by the same events

    @torch.no_grad()
    def follow(self, batch: EventBatch) -> Tensor:
        """``(B,)`` logits of a batch's events, by what was before the batch; then they enter the state."""
        batch = self._enter(batch)
        found = self.read(torch.cat([batch.source, batch.destination]), batch.time.repeat(2))
        place = torch.arange(len(batch), device=batch.source.device)
        logits = self.logits(found, place, place + len(batch))
        self._leave(batch, found)
        return logits

    @torch.no_grad()
    def evaluate(self, events: EventBatches, *, by_batch: bool = False) -> dict[str, dict[str, float]]:
        """``{"links": {"ap": ..., "auc": ...}}``, higher is better; what `polytask.fit` can monitor.

        Batch by batch the events enter the state, which is put back at the end. Call ``eval()`` first.

        Args:
            events: to predict.
            by_batch: the mean of each batch's metrics, as some papers' code reports; by default all scores count together.
        """
        scored = self.scores(events)
        if not by_batch:
            positive, negative = (torch.cat(each) for each in zip(*scored, strict=True))
            return {"links": pooled(positive, negative)}
        each = [pooled(positive, negative) for positive, negative in scored]
        return {"links": {name: sum(found[name] for found in each) / len(each) for name in each[0]}}

    @torch.no_grad()
    def scores(self, events: EventBatches) -> list[tuple[Tensor, Tensor]]:
        """For each batch the ``(B,)`` logits of its events and those of its negatives; the state is put back at the end."""
        found = []
        with self.kept():
            for given in events.epoch(0):
                batch = self._enter(given)
                positive, negative, read = self._scored(batch)
                self._leave(batch, read)
                found.append((positive.float(), negative.float()))
        return found

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What happens to the state inside is undone at the end."""
        before, self._last = [table.snapshot() for table in self.tables], None
        try:
            yield
        finally:
            self._put_back(before)

    @property
    def seen(self) -> tuple[int, float]:
        """How many events the state has seen, and the time of the last."""
        return int(self.clock.column("count")[0]), float(self.clock.column("time")[0])

    def reset(self, start: float = 0.0) -> None:
        """Forget the stream; another one begins at time ``start``."""
        for table in self.tables:
            table.reset()
        self.clock.column("time").fill_(start)

    def snapshots(self, batch: EventBatch) -> list[Snapshot]:
        """What the batch's events will change, of each of the tables."""
        nodes, _ = batch.ends
        return [table.snapshot(None if table is self.clock else nodes) for table in self.tables]

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

    def _leave(self, batch: EventBatch, found: Any) -> None:
        """Let the batch's events enter the state."""
        self._last = (batch.position, self.snapshots(batch))
        self.write(batch, found)
        self.clock.column("time").copy_(batch.time[-1:])
        self.clock.column("count").add_(len(batch))

    def _scored(self, batch: EventBatch) -> tuple[Tensor, Tensor, Any]:
        """``(B,)`` logits of the events, and of the negatives; and what was read for them."""
        nodes = [batch.source, batch.destination, batch.negative]
        nodes += [] if batch.negative_source is None else [batch.negative_source]
        found = self.read(torch.cat(nodes), batch.time.repeat(len(nodes)))
        place = torch.arange(len(nodes) * len(batch), device=batch.source.device).view(len(nodes), -1)
        left = torch.cat([place[0], place[3] if len(nodes) == 4 else place[0]])
        positive, negative = self.logits(found, left, place[1:3].flatten()).chunk(2)
        return positive, negative, found
