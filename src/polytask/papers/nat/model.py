"""NAT as a module that `polytask.fit` trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.data.temporal import EventBatch
from polytask.errors import InputError
from polytask.events import EventModel, EventSettings, event_models
from polytask.nn.graph import NodeTable, Snapshot, TimeEncoding, alternating
from polytask.papers.nat.cache import NeighbourCache
from polytask.papers.nat.joint import Pooling, Slots, join

TIMES = ("absolute", "since")
PRESETS: dict[str, dict[str, Any]] = {
    "wikipedia": {"sizes": (32, 16), "state_width": 72, "vector_width": 4, "replace": 0.7, "heads": 2},
    "wiki-talk": {"sizes": (16,), "state_width": 72, "vector_width": 4, "replace": 0.7, "heads": 1},
}
"""What the authors' instructions set, by data set."""
RELEASED: dict[str, Any] = {"pool": "sum", "guard": "all"}
"""What the authors' code does otherwise than their paper."""


class Read(NamedTuple):
    """What the tables say of ``Q`` nodes at a time.

    Attributes:
        place: ``(Q,)`` int64, where each stands among the ``R`` that were read: where the time of reading does not matter a
            node is read once.
        states: ``(R, state_width)`` with each node's last event folded in.
        slots: of their caches, with refreshed vectors.
    """

    place: Tensor
    states: Tensor
    slots: Slots


class NAT(EventModel):
    """Neighbourhood-aware temporal network: a pair is scored from what the caches of both its ends have in common.

    Luo and Li, *Neighborhood-aware scalable temporal network representation learning*, LoG 2022. When a node is read,

        z'_a = GRU(W [s_a, e, TE(t)], z_a)      for each slot (a, e, t, z_a) of its cache, one GRU for all hops,
        s'   = GRU(W [s_b, e, TE(t)], s)        where (b, e, t) is the node's last event.

    For a pair the slots of both caches are joined by key (`polytask.papers.nat.joint`), and
    ``logit = MLP([pooled, s'_u, s'_v])``. After a batch its events are written: ``v`` enters the cache of ``u`` at hop 1,
    from a vector of zeros where it was not there; the slots of ``v`` at hop ``k`` are offered to ``u`` at hop ``k + 1``; so
    for ``v``. A gradient goes through one refresh and no further. A node's memory has a constant size, and a batch costs
    the same however many nodes there are.

    Args:
        nodes: how many there are.
        width: of what is pooled; with the authors the width of the nodes' features.
        sizes: slots at hop 1, hop 2, ...; none: the nodes' states alone.
        state_width: of ``s``.
        vector_width: of ``z``; the authors' are 2 to 8.
        position_width: of a code's embedding; 0 leaves the code out.
        time_width: of ``TE``.
        edge_width: of the events' features ``e``.
        features: ``(nodes, F)`` of the nodes; the state dict does not have them.
        remembered: how many of the last events have their features kept, for the slots to look up; older ones count as 0.
        replace, guard, seed: of `NeighbourCache`.
        times: ``t`` is the event's time, ``"absolute"``, in float64, or the time ``"since"`` it, at the reading, which costs
            more: a node is then read for each pair that it is in.
        heads, dropout, pool: of `Pooling`.
    """

    def __init__(
        self,
        nodes: int,
        width: int = 172,
        *,
        sizes: Sequence[int] = (32, 16),
        state_width: int = 72,
        vector_width: int = 4,
        position_width: int = 16,
        time_width: int = 1,
        edge_width: int = 0,
        features: Tensor | None = None,
        remembered: int = 200_000,
        replace: float = 0.7,
        guard: str = "collisions",
        seed: int = 0,
        times: str = "absolute",
        heads: int = 2,
        dropout: float = 0.1,
        pool: str = "attention",
    ) -> None:
        super().__init__()
        if times not in TIMES:
            raise InputError(f"times {times!r}, expected 'since' or 'absolute'")
        if features is not None and len(features) != nodes:
            raise InputError(f"features of {len(features)} nodes, expected {nodes}")
        if remembered < 1:
            raise InputError(f"features of the last {remembered} events, expected at least 1")
        self.times, self.edge_width, self.hops = times, edge_width, 1 + len(sizes)
        self.features: Tensor | None
        self.register_buffer("features", features, False)
        self.cache = NeighbourCache(nodes, sizes, vector_width, replace=replace, guard=guard, seed=seed)
        self.last = NodeTable(
            nodes,
            state=((state_width,), torch.float32),
            key=((), torch.int64),
            event=((), torch.int64),
            time=((), torch.float64),
        )
        self.log = (
            NodeTable(remembered, event=((), torch.int64), feature=((edge_width,), torch.float32)) if edge_width else None
        )
        inputs = state_width + edge_width + time_width
        self.encode = TimeEncoding(time_width)
        self.to_state = nn.Linear(inputs, state_width, bias=False)
        self.state_cell = nn.GRUCell(state_width, state_width)
        self.to_vector = nn.Linear(inputs, vector_width, bias=False)
        self.vector_cell = nn.GRUCell(vector_width, vector_width)
        feature_width = 0 if features is None else features.shape[1]
        self.pooling = Pooling(
            width, vector_width, feature_width, 4**self.hops, position_width, heads=heads, dropout=dropout, pool=pool
        )
        hidden = width + 2 * state_width
        layers = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        for layer in layers:
            nn.init.xavier_normal_(layer.weight)
        self.decoder = nn.Sequential(layers[0], nn.ReLU(), layers[1])

    @property
    def tables(self) -> list[NodeTable]:
        return [self.cache, self.last, *([self.log] if self.log is not None else []), self.clock]

    def read(self, nodes: Tensor, time: Tensor) -> Read:
        cache, last = self.cache, self.last
        place = torch.arange(len(nodes), device=nodes.device)
        if self.times == "absolute":
            nodes, place = torch.unique(nodes, return_inverse=True)
            time = time[: len(nodes)]
        keys = cache.key[nodes]
        keys[:, 0] = nodes + 1  # a node has itself at hop 0 before its first event, too
        flat = (keys > 0).flatten().nonzero()[:, 0]
        owner, slot = flat // cache.slots, flat % cache.slots
        row = torch.full_like(keys, -1)
        row.view(-1)[flat] = torch.arange(len(flat), device=flat.device)
        stored, key = nodes[owner] * cache.slots + slot, keys.view(-1)[flat]
        event, when = cache.event.view(-1)[stored], cache.time.view(-1)[stored]
        vector = cache.vector.view(-1, cache.width)[stored]
        inputs = self._inputs(self.to_vector, last.column("state")[key - 1], event, when, time[owner])
        fresh = self.vector_cell(inputs, vector) * (event > 0)[:, None]
        slots = Slots(owner, slot, cache.hop[slot], key, event, when, fresh, row)
        return Read(place, self._states(nodes, time), slots)

    def logits(self, found: Read, left: Tensor, right: Tensor) -> Tensor:
        left, right = found.place[left], found.place[right]
        pooled = self.pooling(join(found.slots, left, right, self.hops), len(left), self.features)
        states = [found.states.index_select(0, place) for place in (left, right)]
        logits: Tensor = self.decoder(torch.cat([pooled, *states], 1))[:, 0]
        return logits

    def write(self, batch: EventBatch, found: Read) -> None:
        count, device = len(batch), batch.source.device
        order = torch.arange(count, device=device)
        number = self.clock.column("count") + 1 + order  # events are numbered from 1
        if self.log is not None:
            self._remember(batch, number)
        ends, others = alternating(batch.source, batch.destination), alternating(batch.destination, batch.source)
        place, twice = found.place[alternating(order, order + count)], order.repeat_interleave(2)
        time, event = batch.time.repeat_interleave(2), number.repeat_interleave(2)
        cache, slots = self.cache, found.slots
        vector = slots.vector.detach()

        offers = [(ends, torch.zeros_like(ends), ends + 1, event, time, vector[slots.row[place, 0]], twice)]
        if self.hops > 1:
            slot = cache.slot(others + 1, 1)
            row = slots.row[place, slot]
            same = (row >= 0) & (slots.key[row] == others + 1)
            offers.append((ends, slot, others + 1, event, time, vector[row] * same[:, None], twice))
        for hop in range(1, self.hops - 1):
            rows = slots.row[place][:, cache.hop == hop]
            end, _ = (rows >= 0).nonzero(as_tuple=True)
            row = rows[rows >= 0]
            key = slots.key[row]
            to = cache.slot(key, hop + 1)
            offers.append((others[end], to, key, slots.event[row], slots.time[row], vector[row], twice[end]))
        cache.put(*(torch.cat(parts) for parts in zip(*offers, strict=True)))

        distinct, latest = batch.ends
        self.last.write(
            distinct,
            state=found.states.detach()[place[latest]],
            key=others[latest] + 1,
            event=event[latest],
            time=time[latest],
        )

    def snapshots(self, batch: EventBatch) -> list[Snapshot]:
        nodes, _ = batch.ends
        found = [self.cache.snapshot(nodes), self.last.snapshot(nodes)]
        if self.log is not None:
            first = self.clock.column("count") + 1
            found.append(self.log.snapshot((first + torch.arange(len(batch), device=nodes.device)) % self.log.nodes))
        return [*found, self.clock.snapshot()]

    def _states(self, nodes: Tensor, time: Tensor) -> Tensor:
        """``(Q, state_width)`` with the last event of each folded in."""
        last = self.last
        state, key, event = last.column("state")[nodes], last.column("key")[nodes], last.column("event")[nodes]
        other = last.column("state")[(key - 1).clamp(min=0)]
        inputs = self._inputs(self.to_state, other, event, last.column("time")[nodes], time)
        fresh: Tensor = self.state_cell(inputs, state)
        return torch.where((key > 0)[:, None], fresh, state)

    def _inputs(self, layer: nn.Linear, states: Tensor, event: Tensor, when: Tensor, now: Tensor) -> Tensor:
        """``W [s, e, TE(t)]`` of events, of which ``when`` is the time; ``W`` in parts, to copy no states."""
        parts = [self.encode(now - when if self.times == "since" else when)]
        if self.log is not None:
            row = event % self.log.nodes
            kept = (self.log.column("event")[row] == event) & (event > 0)
            parts.insert(0, self.log.column("feature")[row] * kept[:, None])
        weight, width = layer.weight, states.shape[1]
        return F.linear(states, weight[:, :width]) + F.linear(torch.cat(parts, 1), weight[:, width:])

    def _remember(self, batch: EventBatch, number: Tensor) -> None:
        assert self.log is not None
        if batch.features is None or batch.features.shape[1] != self.edge_width:
            found = 0 if batch.features is None else batch.features.shape[1]
            raise InputError(f"events with {found} features, expected {self.edge_width}")
        if len(batch) > self.log.nodes:
            raise InputError(f"a batch of {len(batch)} events, expected at most the {self.log.nodes} that are remembered")
        self.log.write(number % self.log.nodes, event=number, feature=batch.features)


@event_models.add("nat")
@dataclass(frozen=True)
class NATSettings(EventSettings):
    """NAT; its times are those since an event, which the next day's events have too.

    Args:
        width, sizes, state_width, vector_width, time_width, times, seed: of `NAT`.
    """

    width: int = 32
    sizes: Sequence[int] = (32, 16)
    state_width: int = 72
    vector_width: int = 4
    time_width: int = 8
    times: str = "since"
    seed: int = 0

    def build(self) -> NAT:
        return NAT(**asdict(self))
