"""PRES: closed forms of prediction, correction and coherence; TGN as a special case; the claims' experiment, small."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polytask.data.temporal import EventBatches, Events
from polytask.errors import InputError
from polytask.nn.graph import TemporalMemory
from polytask.papers.pres import (
    PAPER,
    Increments,
    PresMemory,
    ReleasedMemory,
    comparison,
    distortion,
    incoherence,
    pending,
    pres,
    released_incoherence,
    tgn,
)
from polytask.papers.pres.picture import plot


def stream(count: int = 120, seed: int = 0) -> Events:
    key = torch.Generator().manual_seed(seed)
    source, destination = torch.randint(10, (2, count), generator=key)
    time = torch.randint(0, 5, (count,), generator=key).cumsum(0)
    labels = torch.randint(2, (count,), generator=key).float()
    return Events("stream", source, destination, time, torch.randn(count, 2, generator=key), labels, nodes=10)


def test_moments_are_those_of_what_was_observed() -> None:
    found, nodes = Increments(3, 1), torch.tensor([2])
    for value in (1.0, 3.0):
        found.add(nodes, torch.tensor([[value]]), torch.tensor([0]))
    found.add(nodes, torch.tensor([[8.0]]), torch.tensor([1]))
    mean, variance = found.moments(nodes)
    assert mean.flatten().tolist() == [2, 8] and variance.flatten().tolist() == [1, 0]
    whole, known = found.mean(torch.tensor([0, 2]))
    assert whole.flatten().tolist() == [0, 4] and known.tolist() == [False, True]


def test_coherence_goes_by_the_angle() -> None:
    states = torch.randn(5, 4)
    values = [float(incoherence(states, factor * states)) for factor in (3.0, -0.5)]
    assert values == pytest.approx([0, 2], abs=1e-6)
    zero = torch.zeros(5, 4)
    after = states.clone().requires_grad_()
    incoherence(zero, after).backward()
    assert after.grad is not None and after.grad.isfinite().all()


def test_pending_events_of_a_star_are_all_pairs() -> None:
    size = 9
    star = torch.zeros(size, dtype=torch.int64)
    assert int(pending(star, torch.arange(1, size + 1)).sum()) == size * (size - 1) // 2
    assert pending(torch.tensor([0, 2, 1, 0]), torch.tensor([1, 3, 2, 1])).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("embedding", ["attention", "identity"])
def test_a_gate_of_one_without_coherence_is_tgn(embedding: str) -> None:
    def trained(kind: str) -> list[Tensor]:
        torch.manual_seed(0)
        if kind == "tgn":
            net = tgn(TemporalMemory(10, 6, edge_width=2), embedding)
        else:
            net = pres(10, 6, embedding, edge_width=2, gate=1.0, beta=0.0)
        optimizer, found = torch.optim.Adam(net.parameters(), 1e-2), []
        for batch in EventBatches(stream(), 30).epoch(0):
            optimizer.zero_grad()
            losses = torch.stack(list(net.losses(batch).values()))
            losses.sum().backward()
            optimizer.step()
            found.append(losses.detach())
        return [*found, net.memory.table.column("state")]

    assert all(torch.equal(a, b) for a, b in zip(trained("tgn"), trained("pres"), strict=True))


VELOCITY = torch.tensor([0.01, -0.002])


class Span(nn.Module):
    """A span of time as it is, in the place of its encoding."""

    def forward(self, time: Tensor) -> Tensor:
        return time.float()[:, None].expand(-1, 2)


class Drift(nn.Module):
    """A cell that moves a state of width 2 at a constant velocity."""

    def forward(self, message: Tensor, state: Tensor) -> Tensor:
        return state + message[:, -1:] * VELOCITY


def test_a_constant_velocity_is_predicted_exactly() -> None:
    memory = PresMemory(4, 2, gate=0.3, time_width=2)
    memory.encode, memory.cell = Span(), Drift()  # type: ignore[assignment]
    pair = torch.tensor([1]), torch.tensor([2])
    for moment in (4.0, 7.0, 19.0, 21.0, 30.0):
        updated = memory(torch.tensor([1, 2]))
        predicted, known = memory.predicted(updated)
        if known.all():
            torch.testing.assert_close(predicted, updated.time.float()[:, None] * VELOCITY)
        memory.advance(updated, *pair, torch.tensor([moment], dtype=torch.float64))
    mean, variance = memory.increments.moments(torch.tensor([1]))
    torch.testing.assert_close(mean[0, 0], VELOCITY)
    assert float(variance.max()) < 1e-9 and int(memory.increments.count[1, 0]) == 4


def test_the_state_lies_between_prediction_and_measurement() -> None:
    torch.manual_seed(0)
    found = {}
    for gate in (0.25, 1.0):
        torch.manual_seed(0)
        net = pres(10, 6, "identity", edge_width=2, gate=gate, beta=0.0).eval()
        plain = pres(10, 6, "identity", edge_width=2, gate=1.0, beta=0.0).eval()
        net.observe(EventBatches(stream(), 30))
        plain.load_state_dict({**net.state_dict(), "memory.logit": torch.tensor(torch.inf)})
        nodes = torch.arange(10)
        mixed, measured = net.memory(nodes), plain.memory(nodes)
        assert isinstance(net.memory, PresMemory)
        predicted, known = net.memory.predicted(measured)
        assert known.any()
        expected = torch.where(known[:, None], (1 - gate) * predicted + gate * measured.states, measured.states)
        torch.testing.assert_close(mixed.states, expected)
        found[gate] = mixed.states
    assert not torch.equal(found[0.25], found[1.0])


def test_labels_say_which_component_an_event_belongs_to_and_ties_show_no_increment() -> None:
    memory = PresMemory(3, 2, components=2)
    one, two = torch.tensor([0]), torch.tensor([1])
    for time, label in ((1.0, 0.0), (2.0, 1.0), (2.0, 0.0), (5.0, 0.0), (6.0, 0.0)):
        memory.advance(
            memory(torch.arange(3)), one, two, torch.tensor([time], dtype=torch.float64), labels=torch.tensor([label])
        )
    # Of the four that have entered the state, the one at time 2 again shows nothing.
    assert memory.increments.count[0].tolist() == [2, 1] and memory.increments.count.isfinite().all()
    assert not memory.increments.count[2].any()


def test_every_parameter_learns_and_the_filter_has_no_gradient() -> None:
    net = pres(10, 6, edge_width=2, neighbours=3)
    assert net.tasks == ("links", "others", "coherence")
    for batch in EventBatches(stream(), 30).epoch(0):
        net.zero_grad()
        losses = net.losses(batch)
        assert tuple(losses) == net.tasks
        sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert float(net.memory.get_parameter("logit").grad) != 0  # type: ignore[arg-type]
    assert not any(table.column(name).requires_grad for table in net.tables for name in table.columns)


def test_single_events_distort_nothing_and_the_state_is_left() -> None:
    net = pres(10, 6, "identity", edge_width=2).eval()
    events = stream()
    net.observe(EventBatches(events[:60], 10))
    before = net.memory.table.column("state").clone()
    assert distortion(net, events[60:], 1, corrected=False) == 0 < distortion(net, events[60:], 1)
    assert distortion(net, events[60:], 20, corrected=False) > 0
    assert torch.equal(net.memory.table.column("state"), before)


@pytest.mark.parametrize("changed", [{"span": "gap"}, {"span": "update"}, {"drawn": True}, {"anchors": torch.arange(1, 6)}])
def test_a_batch_that_comes_again_is_computed_from_the_state_before_it(changed: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = pres(10, 6, "identity", edge_width=2, **changed)
    for batch in EventBatches(stream(), 30).epoch(0):
        torch.manual_seed(1)
        first = torch.stack(list(net.losses(batch).values()))
        after = {name: value.clone() for name, value in net.state_dict().items()}
        torch.manual_seed(1)
        assert torch.equal(torch.stack(list(net.losses(batch).values())), first)
        assert all(torch.equal(value, after[name]) for name, value in net.state_dict().items())
        first.sum().isfinite()


def test_a_span_is_counted_in_a_nodes_own_gaps_or_in_updates() -> None:
    for span, expected in (("time", [4.0, 2.0, 9.0]), ("gap", [1.0, 2 / 3, 9 / 5]), ("update", [1.0, 1.0, 1.0])):
        memory, found = PresMemory(4, 2, span=span), []
        for moment in (4.0, 6.0, 15.0, 16.0):
            updated = memory(torch.tensor([1, 2]))
            if updated.changed.all():
                found.append(float(memory.spans(updated)[0]))
            memory.advance(updated, torch.tensor([1]), torch.tensor([2]), torch.tensor([moment], dtype=torch.float64))
        assert found == pytest.approx(expected)


def test_increments_are_drawn_from_the_mixture_in_training_alone() -> None:
    found, node = Increments(2, 1), torch.tensor([1])
    for value, component in ((1.0, 0), (3.0, 0), (10.0, 1)):
        found.add(node, torch.tensor([[value]]), torch.tensor([component]))
    torch.manual_seed(0)
    drawn, known = found.draw(node.expand(30_000))
    assert known.all() and not found.draw(torch.tensor([0]))[1].any()
    second = drawn == 10  # of a variance of 0
    assert float(second.float().mean()) == pytest.approx(1 / 3, abs=0.02)
    assert float(drawn[~second].mean()) == pytest.approx(2, abs=0.03)
    assert float(drawn[~second].std()) == pytest.approx(1, abs=0.03)
    net = pres(10, 6, "identity", edge_width=2, drawn=True).eval()
    net.observe(EventBatches(stream(), 30))
    assert torch.equal(net.memory(torch.arange(10)).states, net.memory(torch.arange(10)).states)
    net.train()
    assert not torch.equal(net.memory(torch.arange(10)).states, net.memory(torch.arange(10)).states)


def test_anchors_alone_have_predictions() -> None:
    torch.manual_seed(0)
    anchors = torch.tensor([7, 2])
    net, whole = pres(10, 6, "identity", edge_width=2, anchors=anchors).eval(), pres(10, 6, "identity", edge_width=2).eval()
    missing = whole.load_state_dict({k: v for k, v in net.state_dict().items() if "increments" not in k}, strict=False)
    assert all("increments" in name for name in missing.missing_keys)
    assert isinstance(net.memory, PresMemory) and net.memory.increments.total.shape[0] == 2
    for model in (net, whole):
        model.observe(EventBatches(stream()[:30], 30))  # messages wait, nothing is predicted yet
        model.observe(EventBatches(stream()[30:60], 30, past=stream()[:30]))
    assert isinstance(whole.memory, PresMemory)
    nodes = torch.arange(10)
    known = net.memory.increments.mean(nodes)[1]
    assert torch.equal(known, whole.memory.increments.mean(nodes)[1] & torch.isin(nodes, anchors)) and known.any()
    for mine, theirs in zip(net.memory.increments.moments(anchors), whole.memory.increments.moments(anchors), strict=True):
        torch.testing.assert_close(mine, theirs)
    with net.memory.measured():
        plain = net.memory(nodes).states
    changed = (net.memory(nodes).states != plain).any(1)
    assert set(changed.nonzero().flatten().tolist()) <= {2, 7} and changed.any()


def test_the_released_variant_keeps_what_the_cell_has_and_its_coherence_teaches_nothing() -> None:
    torch.manual_seed(0)
    plain = pres(10, 6, "identity", edge_width=2, gate=1.0, beta=0.0).eval()
    net = pres(10, 6, "identity", edge_width=2, variant="released").eval()
    assert isinstance(net.memory, ReleasedMemory)
    net.memory.cell.load_state_dict(plain.memory.cell.state_dict())
    for model in (plain, net):
        model.observe(EventBatches(stream(), 30))
    assert torch.equal(net.memory.table.column("state"), plain.memory.table.column("state"))
    updated = net.memory(torch.arange(10))
    total = net.memory.increments.column("total")
    scaled = 2 * (total - total.min()) / (total.max() - total.min()) - 1
    expected = 0.9 * (updated.before + scaled) + 0.1 * plain.memory(torch.arange(10)).states
    torch.testing.assert_close(updated.states, expected)
    losses = net.losses(next(iter(EventBatches(stream(), 30).epoch(0))))
    assert not losses["coherence"].requires_grad and losses["links"].requires_grad
    before, after = torch.randn(4, 3), torch.randn(4, 3)
    cosines = [torch.nn.functional.cosine_similarity(before[:, k], after[:, k], 0) for k in range(3)]
    torch.testing.assert_close(released_incoherence(before, after, 8), (3 - sum(cosines)) / 8)


def test_settings_that_cannot_be_are_refused() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"gate": 1.5}, "gate of 1.5"),
        ({"beta": -1}, "beta -1"),
        ({"components": 0}, "mixture of 0"),
        ({"span": "day"}, "span 'day'"),
        ({"variant": "other"}, "variant 'other'"),
        ({"anchors": torch.tensor([0, 0])}, "2 anchors, 1 of them distinct"),
        ({"anchors": torch.tensor([3])}, "anchors from 3 to 3"),
    ]
    for settings, words in refused:
        with pytest.raises(InputError, match=words):
            pres(3, 4, **settings)


def test_the_comparison_on_a_short_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = stream(400)
    (tmp_path / "temporal_graphs").mkdir()
    arrays = {"src": events.source.numpy(), "dst": events.destination.numpy(), "ts": events.time.numpy().astype(np.int64)}
    np.savez(tmp_path / comparison.FILES[0], **arrays)
    monkeypatch.setattr(comparison, "WIDTH", 4)
    measured = comparison.measure(0, tmp_path, epochs=1)
    assert {name for claim in PAPER.claims for name in claim.pair} <= set(measured)
    assert all(np.isfinite(value) and value >= 0 for value in measured.values())
    assert len(plot({0: measured, 1: measured}).axes) == 1
