"""TGN on streams: no leaks, a state that goes on, comes back and is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch

import polytask as pt
from polytask.data.temporal import EventBatch, EventBatches, Events, split_events
from polytask.errors import InputError
from polytask.events import EMBEDDINGS, TGN, tgn
from polytask.nn.graph import TemporalMemory


def stream(count: int = 120, width: int = 2, start: float = 0.0, seed: int = 0) -> Events:
    key = torch.Generator().manual_seed(seed)
    source, destination = torch.randint(10, (2, count), generator=key)
    time = start + torch.randint(1, 50, (count,), generator=key).cumsum(0).double()
    return Events("stream", source, destination, time, torch.randn(count, width, generator=key), nodes=10)


def model(embedding: str = "attention", **settings: Any) -> TGN:
    torch.manual_seed(0)
    memory = TemporalMemory(10, 6, edge_width=2, time_width=4)
    return tgn(memory, embedding, **({"neighbours": 3} if embedding == "attention" else {}), **settings)


def state(model: TGN) -> list[torch.Tensor]:
    return [table.column(name).clone() for table in model.tables for name in table.columns]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_a_batch_is_not_predicted_from_its_own_events(embedding: str) -> None:
    net = model(embedding, gap=1000.0).eval()
    events = stream()
    net.observe(EventBatches(events[:60], 10))
    batch = next(iter(EventBatches(events[60:], 20, past=events[:60]).epoch(0)))
    with net.kept():
        whole, _, _ = net._scored(net._enter(batch))
    alone = net.score(batch.source[7:8], batch.destination[7:8], batch.time[7:8])
    torch.testing.assert_close(whole[7:8], alone)
    changed = EventBatch(**(batch.columns | {"features": batch.features + 1}))  # type: ignore[operator]
    with net.kept():
        torch.testing.assert_close(net._scored(net._enter(changed))[0], whole)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_every_parameter_learns(embedding: str) -> None:
    net = model(embedding, gap=1000.0)
    for batch in EventBatches(stream(), 30).epoch(0):
        net.zero_grad()
        sum(net.losses(batch).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.memory.cell.weight_ih.grad.any()
    assert not any(column.requires_grad for column in state(net))


def test_evaluating_and_scoring_leave_the_state() -> None:
    split, net = split_events(stream()), model().eval()
    net.observe(split.batches("train", 20))
    before = state(net)
    first = net.evaluate(split.batches("validation", 7))
    net.score(torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([5e3, 5e3]))
    assert same(state(net), before) and first == net.evaluate(split.batches("validation", 7))
    net.observe(split.batches("validation", 7))
    assert not same(state(net), before)
    assert sorted(net.evaluate(split.batches("test", 7, negatives="historical"))["links"]) == ["ap", "auc"]


def test_evaluation_goes_on_from_what_was_seen() -> None:
    split, net = split_events(stream()), model().eval()
    net.observe(split.batches("train", 20))
    late = net.evaluate(split.batches("test", 5))
    net.observe(split.batches("validation", 7))
    assert net.evaluate(split.batches("test", 5)) != late


def test_a_batch_that_comes_again_is_computed_from_the_state_before_it() -> None:
    net = model().eval()
    for batch in EventBatches(stream(), 30).epoch(0):
        first = net.losses(batch)
        after = state(net)
        again = net.losses(batch)
        assert all(torch.equal(first[name], again[name]) for name in first) and same(state(net), after)


def test_going_back_in_time_is_refused_and_a_new_epoch_begins_anew() -> None:
    net, batches = model().eval(), EventBatches(stream(), 30)
    first = [net.losses(batch)["links"].item() for batch in batches.epoch(0)]
    second = list(batches.epoch(0))[1]
    with pytest.raises(InputError, match=r"event 31: time .* before .*, which the memory has seen"):
        net.losses(second)
    late = EventBatches(stream()[60:], 60, past=stream()[:60])
    net.observe(EventBatches(stream()[:60], 60))
    net.observe(late)
    for again in (net.observe, net.evaluate):
        with pytest.raises(InputError, match="event 61: time"):
            again(late)
    assert [net.losses(batch)["links"].item() for batch in batches.epoch(0)] == first


def test_only_differences_of_times_matter() -> None:
    found = []
    for start in (0.0, 1_082_040_961.0):
        net = model().eval()
        found.append(torch.stack([net.losses(b)["others"] for b in EventBatches(stream(start=start), 30).epoch(0)]))
    torch.testing.assert_close(*found)


def test_the_state_is_saved_with_the_weights() -> None:
    split, net, other = split_events(stream()), model().eval(), model().eval()
    net.observe(split.batches("train", 20))
    other.load_state_dict(net.state_dict())
    assert other.evaluate(split.batches("validation", 7)) == net.evaluate(split.batches("validation", 7))


def test_a_run_that_was_killed_ends_with_the_same_state(tmp_path: Path) -> None:
    split = split_events(stream())
    batches, validation = split.batches("train", 20), split.batches("validation", 20)

    class Killed(Exception): ...

    class Killer:
        def step(self, step: int, losses: object) -> None:
            if step == 6:
                raise Killed

        def record(self, record: object) -> None: ...

        def close(self) -> None: ...

    def run(out: Path | None, *listeners: Any) -> TGN:
        net = model()
        pt.fit(
            net, batches, validation, epochs=2, evaluate_every=len(batches), checkpoint_every=2, out=out,
            monitor="links/ap", listeners=listeners,
        )  # fmt: skip
        return net

    with pytest.raises(Killed):
        run(tmp_path, Killer())
    resumed, whole = run(tmp_path).state_dict(), run(None).state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("balance", ["uncertainty", "pcgrad"])
def test_fit_learns_who_meets_whom(balance: str) -> None:
    key = torch.Generator().manual_seed(1)
    source, chance = torch.randint(4, (800,), generator=key), torch.randint(2, (800,), generator=key)
    group = source % 2  # without features all nodes would be alike to a memory that begins at zero
    friends = Events("friends", source, 4 + 2 * chance + group, torch.arange(800), 2.0 * group[:, None] - 1, nodes=8)
    split = split_events(friends)
    torch.manual_seed(0)
    net = tgn(TemporalMemory(8, 16, edge_width=1), "identity")
    batches = split.batches("train", 20)
    fitted = pt.fit(
        net, batches, split.batches("validation", 20), epochs=3, lr=1e-2, monitor="links/auc",
        balance=balance, evaluate_every=len(batches),
    )  # fmt: skip
    assert fitted.score is not None and fitted.score > 0.7
    net.eval().observe(split.batches("validation", 20))
    assert net.evaluate(split.batches("test", 20))["links"]["auc"] > 0.7


def test_what_a_stream_is_validated_by_has_to_be_named() -> None:
    net, split = model(), split_events(stream())
    train, validation = split.batches("train", 20), split.batches("validation", 20)
    with pytest.raises(InputError, match="validation data is a EventBatches, whose losses change what the model"):
        pt.fit(net, train, validation, epochs=1)


def test_mixed_precision_keeps_states_and_times() -> None:
    from polytask.training import fabric

    net, events = model(), stream(start=1e9)
    mixed = fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    pt.fit(net, EventBatches(events, 30), epochs=1, fabric=mixed)
    assert net.memory.table.column("state").dtype == torch.float32
    assert float(net.clock.column("time")) == float(events.time[-1])


def test_unknown_embeddings_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'identity'"):
        tgn(TemporalMemory(3, 4), "identiti")
