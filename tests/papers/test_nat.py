"""NAT: caches against dictionaries, codes and joins by hand, no leaks, the claims' experiment, small."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import polytask as pt
from polytask.data.temporal import EventBatch, EventBatches, Events, hide_nodes, split_events
from polytask.errors import InputError
from polytask.papers.nat import NAT, PAPER, PRESETS, RELEASED, NeighbourCache, chances, comparison, hashed, join
from polytask.papers.nat.heuristics import scores
from polytask.papers.nat.picture import plot


def stream(count: int = 120, width: int = 2, start: float = 0.0, seed: int = 0, nodes: int = 10) -> Events:
    key = torch.Generator().manual_seed(seed)
    source, destination = torch.randint(nodes, (2, count), generator=key)
    time = start + torch.randint(1, 50, (count,), generator=key).cumsum(0).double()
    features = torch.randn(count, width, generator=key) if width else None
    return Events("stream", source, destination, time, features, nodes=nodes)


def model(**changed: Any) -> NAT:
    torch.manual_seed(0)
    chosen = {
        "sizes": (8, 4),
        "state_width": 6,
        "time_width": 3,
        "edge_width": 2,
        "position_width": 5,
        "remembered": 500,
        "times": "since",
    }
    return NAT(10, 8, **{**chosen, **changed})


def state(net: NAT) -> list[Tensor]:
    return [table.column(name).clone() for table in net.tables for name in table.columns]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def meet(net: NAT, *pairs: tuple[int, int]) -> NAT:
    """One event after the other."""
    events = Events("met", *torch.tensor(pairs).T, torch.arange(1, len(pairs) + 1), torch.zeros(len(pairs), 2), nodes=10)
    net.eval().observe(EventBatches(events, 1))
    return net


def codes(net: NAT, u: int, v: int) -> dict[int, int]:
    found = net.read(torch.tensor([u, v]), torch.tensor([99.0, 99.0]))
    joined = join(found.slots, torch.tensor([0]), torch.tensor([1]), net.hops)
    return dict(zip((joined.key - 1).tolist(), joined.code.tolist(), strict=True))


# The caches


def test_the_hash_is_the_square_without_a_seed_and_large_numbers_do_not_overflow() -> None:
    keys = torch.arange(1, 50)
    assert torch.equal(hashed(keys, 32), keys**2 % 32)
    large = 2**31 - 1
    assert int(hashed(torch.tensor([large]), 29, 99)) == (large * 99 + large**2 * 100) % 29


def test_chances_are_uniform_and_a_function_of_what_they_are_of() -> None:
    count = torch.arange(20_000)
    found = chances(count, count // 7, seed=3)
    assert float(found.min()) >= 0 and float(found.max()) < 1
    assert float((torch.histc(found.float(), 10, 0, 1) / 2000 - 1).abs().max()) < 0.1
    assert torch.equal(found, chances(count, count // 7, seed=3)) and not torch.equal(
        found, chances(count, count // 7, seed=4)
    )
    assert abs(float(torch.corrcoef(torch.stack([found[1:], found[:-1]]))[0, 1])) < 0.03


writes = st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), max_size=25), max_size=4)


@settings(deadline=None, max_examples=60)
@given(writes, st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from(["collisions", "all"]), st.integers(0, 120))
def test_caches_are_those_that_one_write_after_another_leaves(
    batches: list[list[tuple[int, int]]], replace: float, guard: str, seed: int
) -> None:
    cache, clock = NeighbourCache(4, (5, 3), 1, replace=replace, guard=guard, seed=seed), 0
    known: dict[tuple[int, int], tuple[int, int]] = {}
    for batch in batches:
        nodes, keys = torch.tensor(batch, dtype=torch.int64).reshape(-1, 2).unbind(1)
        order = torch.arange(clock, clock + len(batch))
        slots = cache.slot(keys, 1 + seed % 2)
        chance = chances(order, nodes * cache.slots + slots, keys, seed=seed).tolist()
        mixed = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
        time = order.double()
        given = (nodes, slots, keys, order + 1, time, time[:, None])
        cache.put(*(each[mixed] for each in given), order=order[mixed])
        for k, (node, key) in enumerate(batch):
            free = chance[k] < replace
            held = known.get((node, int(slots[k])))
            if free if guard == "all" else free or held is None or held[0] == key:
                known[node, int(slots[k])] = (key, clock + k)
        clock += len(batch)
    found = {(n, s): int(cache.key[n, s]) for n, s in cache.key.nonzero().tolist()}
    assert found == {place: key for place, (key, _) in known.items()}
    for (node, slot), (_, moment) in known.items():
        assert cache.time[node, slot] == moment == cache.vector[node, slot, 0] == cache.event[node, slot] - 1


def test_with_certainty_the_newest_key_stays_and_without_chance_the_first() -> None:
    # With seed 0 and 8 slots, nodes 0, 2, 4 and 6 (keys 1, 3, 5, 7) have one slot.
    for replace, kept in ((1.0, 5), (0.0, 1)):
        net = meet(model(replace=replace), (9, 0), (9, 2), (9, 4))
        assert net.cache.key[9, 1:9].tolist() == [0, kept, 0, 0, 0, 0, 0, 0]
    again = meet(model(replace=0.0), (9, 0), (9, 2), (9, 0))
    assert again.cache.time[9, 2] == 3  # the first key's own updates go through
    released = meet(model(replace=0.0, guard="all"), (9, 0), (9, 2))
    assert not released.cache.key.any()  # the authors' code writes nothing at all


def test_an_event_fills_one_slot_of_each_end() -> None:
    net = meet(model(), (3, 7))
    hop = net.cache.key[:, 1:9]
    assert hop.count_nonzero() == 2 and net.cache.key[:, 9:].count_nonzero() == 0
    assert hop[3, 8**2 % 8] == 8 and hop[7, 4**2 % 8] == 4
    assert net.cache.key[:, 0].nonzero().flatten().tolist() == [3, 7]
    assert not net.cache.vector.any()  # from zero; the next reading refreshes it


# Joining


def test_codes_say_at_which_hops_a_key_is() -> None:
    found = codes(meet(model(replace=1.0), (1, 2), (3, 2)), 1, 3)
    assert found[2] == 2 + 16  # at hop 1 of both
    assert found[1] == 1 + 32  # itself, and at hop 2 of the other
    assert found[3] == 8
    assert codes(meet(model(), (1, 2)), 2, 1) == {2: 1 + 16, 1: 2 + 8}
    net = meet(model(replace=1.0), (1, 1), (1, 1))
    assert codes(net, 1, 1) == {1: 63}


def test_common_neighbours_are_counted_where_nothing_collides() -> None:
    key = torch.Generator().manual_seed(1)
    pairs = torch.randint(10, (40, 2), generator=key)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    # A prime number of slots; of 10 keys no two whose squares agree modulo it.
    net = meet(model(sizes=(401, 4)), *map(tuple, pairs.tolist()))
    sets = [set() for _ in range(10)]  # type: list[set[int]]
    for u, v in pairs.tolist():
        sets[u].add(v)
        sets[v].add(u)
    for u, v in ((0, 1), (2, 5), (7, 4)):
        assert set((net.cache.key[u, 1:402][net.cache.key[u, 1:402] > 0] - 1).tolist()) == sets[u]
        common = sum(code & 18 == 18 for code in codes(net, u, v).values())
        assert common == len(sets[u] & sets[v])


@pytest.mark.parametrize("pool", ["attention", "sum"])
def test_scores_do_not_depend_on_the_order_of_slots(pool: str) -> None:
    net = model(pool=pool).eval()
    net.observe(EventBatches(stream(), 10))
    found = net.read(torch.arange(6), torch.full((6,), 1e4))
    left, right = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    before = net.logits(found, left, right)
    slots, mixed = found.slots, torch.randperm(len(found.slots.key))
    inverse = torch.empty_like(mixed).scatter_(0, mixed, torch.arange(len(mixed)))
    columns = {name: getattr(slots, name)[mixed] for name in slots._fields if name != "row"}
    row = torch.where(slots.row >= 0, inverse[slots.row], -1)[:, torch.randperm(slots.row.shape[1])]
    torch.testing.assert_close(net.logits(found._replace(slots=slots._replace(**columns, row=row)), left, right), before)


@pytest.mark.parametrize("pool", ["attention", "sum"])
def test_pooling_is_that_of_each_pair_by_itself(pool: str) -> None:
    net = model(pool=pool, features=torch.randn(10, 3), heads=3).eval()
    net.observe(EventBatches(stream(), 10))
    found = net.read(torch.arange(4), torch.full((4,), 1e4))
    left, right = torch.tensor([0, 1]), torch.tensor([2, 3])
    part = net.pooling
    pooled = part(join(found.slots, left, right, 3), 2, net.features)
    for pair in range(2):
        rows: dict[int, list[Any]] = {}
        for side, node in enumerate((left[pair], right[pair])):  # all nodes are read, so places are numbers
            for k in (found.slots.owner == node).nonzero()[:, 0].tolist():
                key, hop = int(found.slots.key[k]), int(found.slots.hop[k])
                old = rows.setdefault(key, [torch.zeros(3), torch.zeros(4), 0])
                old[0], old[1] = old[0] + net.features[key - 1], old[1] + found.slots.vector[k]  # type: ignore[index]
                old[2] += 2 ** (hop + 3 * side)
        x = torch.stack([torch.cat([f, z, part.position.weight[code]]) for f, z, code in rows.values()])  # type: ignore[union-attr]
        projected = part.project(x).view(len(x), 3, -1)
        if pool == "attention":
            projected = projected * torch.nn.functional.leaky_relu(part.attend(x), 0.2).softmax(0)[:, :, None]  # type: ignore[misc]
        torch.testing.assert_close(pooled[pair], projected.sum(0).mean(0) + part.bias)


# The network on a stream


@pytest.mark.parametrize("changed", [{}, {"times": "absolute"}, RELEASED])
def test_a_batch_is_not_predicted_from_its_own_events(changed: dict[str, Any]) -> None:
    net, events = model(**changed).eval(), stream()
    net.observe(EventBatches(events[:60], 10))
    batch = next(iter(EventBatches(events[60:], 20, past=events[:60]).epoch(0)))
    with net.kept():
        whole, _, _ = net._scored(net._enter(batch))
    alone = net.score(batch.source[7:8], batch.destination[7:8], batch.time[7:8])
    torch.testing.assert_close(whole[7:8], alone)
    other = EventBatch(**(batch.columns | {"features": batch.features + 1}))  # type: ignore[operator]
    with net.kept():
        torch.testing.assert_close(net._scored(net._enter(other))[0], whole)


@pytest.mark.parametrize("changed", [{}, {"sizes": ()}, {"sizes": (8,)}, {"position_width": 0}, RELEASED])
def test_every_parameter_learns_and_the_state_has_no_gradient(changed: dict[str, Any]) -> None:
    net = model(**changed)
    for batch in EventBatches(stream(), 30, negatives="historical").epoch(0):
        net.zero_grad()
        sum(net.losses(batch).values()).backward()  # type: ignore[union-attr]
    # Without hops a node's own vector is zero at each reading: what it was before has nothing to teach.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.to_vector.weight.grad.any() and net.state_cell.weight_ih.grad.any()  # type: ignore[union-attr]
    assert not any(column.requires_grad for column in state(net))


def test_the_state_comes_back_goes_on_and_is_saved() -> None:
    split, net, other = split_events(stream()), model().eval(), model().eval()
    net.observe(split.batches("train", 20))
    before = state(net)
    first = net.evaluate(split.batches("validation", 7))
    net.score(torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([5e3, 5e3]))
    assert same(state(net), before) and net.evaluate(split.batches("validation", 7)) == first
    other.load_state_dict(net.state_dict())
    assert other.evaluate(split.batches("validation", 7)) == first
    by_batch = net.evaluate(split.batches("validation", 7), by_batch=True)["links"]["ap"]
    assert by_batch != first["links"]["ap"] and 0 < by_batch <= 1
    net.observe(split.batches("validation", 7))
    assert not same(state(net), before)


def test_a_batch_that_comes_again_is_computed_from_the_state_before_it() -> None:
    net = model(remembered=40).eval()
    for batch in EventBatches(stream(), 30).epoch(0):
        first, after = net.losses(batch), None
        after = state(net)
        again = net.losses(batch)
        assert all(torch.equal(first[name], again[name]) for name in first) and same(state(net), after)


def test_features_of_events_are_looked_up_until_they_are_forgotten() -> None:
    events = stream()
    nets = {size: model(remembered=size).eval() for size in (500, 120, 20)}
    for net in nets.values():
        net.observe(EventBatches(events, 20))
    found = {size: net.score(*torch.tensor([[1, 2], [3, 4]]), torch.full((2,), 1e4)) for size, net in nets.items()}
    assert torch.equal(found[500], found[120]) and not torch.equal(found[120], found[20])


def test_only_differences_of_times_matter_unless_they_are_absolute() -> None:
    found: dict[str, list[Tensor]] = {"since": [], "absolute": []}
    for times, values in found.items():
        for start in (0.0, 1_082_040_961.0):
            net = model(times=times).eval()
            values.append(torch.stack([net.losses(b)["others"] for b in EventBatches(stream(start=start), 30).epoch(0)]))
    torch.testing.assert_close(*found["since"])
    assert not torch.allclose(*found["absolute"])


def test_a_node_is_read_once_where_the_time_of_reading_does_not_matter() -> None:
    events = stream()
    net = model(times="absolute", replace=1.0).eval()
    net.observe(EventBatches(events, 20))
    nodes = torch.tensor([3, 1, 3, 3, 0])
    found = net.read(nodes, torch.full((5,), 1e4))
    assert found.place.tolist() == [2, 1, 2, 2, 0] and len(found.states) == 3
    left, right = torch.tensor([0, 2, 1]), torch.tensor([1, 4, 4])
    together = net.logits(found, left, right)
    for pair in range(3):
        alone = net.score(nodes[left[pair]][None], nodes[right[pair]][None], torch.tensor([2e4]))
        torch.testing.assert_close(together[pair : pair + 1], alone)


def test_fit_learns_and_mixed_precision_keeps_ids_and_times() -> None:
    from polytask.training import fabric

    key = torch.Generator().manual_seed(1)
    source, chance = torch.randint(4, (800,), generator=key), torch.randint(2, (800,), generator=key)
    friends = Events("friends", source, 4 + 2 * chance + source % 2, torch.arange(800), nodes=8)
    split = split_events(friends)
    torch.manual_seed(0)
    net = NAT(8, 8, state_width=8)
    batches = split.batches("train", 20)
    fitted = pt.fit(
        net, batches, split.batches("validation", 20), epochs=2, lr=1e-2, monitor="links/auc", evaluate_every=len(batches)
    )
    assert fitted.score is not None and fitted.score > 0.7
    events, net = stream(start=1e9), model()
    pt.fit(net, EventBatches(events, 30), epochs=1, fabric=fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    assert net.cache.key.dtype == torch.int64 and float(net.cache.time.max()) == float(events.time[-1])
    assert net.cache.vector.dtype == torch.float32 and net.last.column("state").dtype == torch.float32


def test_heuristics_go_by_what_was_before() -> None:
    past = Events("past", torch.tensor([0, 2, 0]), torch.tensor([1, 1, 3]), torch.arange(3), nodes=6)
    now = Events("now", torch.tensor([1, 0, 4]), torch.tensor([0, 2, 5]), torch.arange(3, 6), nodes=6)
    events = EventBatches(now, 3, past=past)
    assert [scores(kind, events, past)[0][0].tolist() for kind in ("edge bank", "common neighbours")] == [
        [1, 0, 0],
        [0, 1, 0],
    ]
    later = EventBatches(now, 2, past=past)
    assert scores("edge bank", later, past)[1][0].tolist() == [0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sizes": (0,)}, r"caches of \(0,\) slots"),
        ({"replace": 1.5}, "replace of 1.5"),
        ({"guard": "some"}, "guard 'some'"),
        ({"pool": "max"}, "pool 'max'"),
        ({"times": "late"}, "times 'late'"),
        ({"heads": 0}, "0 heads"),
        ({"features": torch.zeros(3, 1)}, "features of 3 nodes, expected 10"),
        ({"remembered": 0}, "the last 0 events"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        model(**changed)


def test_events_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="events with 0 features, expected 2"):
        model().losses(next(iter(EventBatches(stream(width=0), 20).epoch(0))))
    with pytest.raises(InputError, match="a batch of 30 events, expected at most the 20"):
        model(remembered=20).losses(next(iter(EventBatches(stream(), 30).epoch(0))))


def test_the_presets_build() -> None:
    assert [NAT(3, 4, **settings, **RELEASED).hops for settings in PRESETS.values()] == [3, 2]


@pytest.mark.soak
def test_the_comparison_on_a_short_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = stream(600, 0, nodes=20)
    (tmp_path / "temporal_graphs").mkdir()
    arrays = {"src": events.source.numpy(), "dst": events.destination.numpy(), "ts": events.time.numpy().astype(np.int64)}
    np.savez(tmp_path / comparison.FILES[0], **arrays)
    monkeypatch.setattr(comparison, "BATCH", 15)
    monkeypatch.setattr(comparison, "STATE", 4)
    assert hide_nodes(split_events(events), seed=0).hidden is not None
    measured = comparison.measure(0, tmp_path, epochs=1)
    assert {name for claim in PAPER.claims for name in claim.pair} <= set(measured)
    assert all(np.isfinite(value) and value >= 0 for value in measured.values())
    assert len(plot({0: measured, 1: measured}).axes) == 2
