"""The pieces in which weights are made, on the review's target: 784-100-10, two contexts, embeddings of 16, hidden [100,
100]."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polytask.errors import InputError
from polytask.share.hypernetwork import (
    MLP,
    Chunks,
    FanOut,
    Heads,
    Hyperfan,
    HyperNetwork,
    Layout,
    LowRank,
    Noise,
    Once,
    PerLayer,
    Strategy,
    Tasks,
    Values,
    Zero,
)

P = 79_510


def target() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def reviewed(strategy: Strategy, hidden: tuple[int, ...] = (100, 100)) -> HyperNetwork:
    return HyperNetwork(target(), Tasks(["a", "b"]), MLP(hidden), strategy, residual=False, start=Hyperfan())


COUNTS = {
    Once(): ((100, 100), 8_042_342),
    PerLayer(embedding=0): ((100, 100), 7_940_364),
    Heads(2): ((100,), 4_066_842),
    Chunks(100, embedding=0): ((100, 100), 95_396),
}


@pytest.mark.parametrize("strategy", COUNTS, ids=str)
def test_the_reviews_parameter_counts(strategy: Strategy) -> None:
    hidden, count = COUNTS[strategy]
    with torch.device("meta"):
        network = reviewed(strategy, hidden)
    assert network.layout.numel == P
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_chunks_need_two_tasks_to_have_fewer_parameters_than_separate_networks() -> None:
    assert P < COUNTS[Chunks(100, embedding=0)][1] < 2 * P


@pytest.mark.parametrize(("strategy", "expected"), [(Once(), 15.9e6), (Chunks(100, embedding=0), 18.2e6)], ids=str)
def test_the_reviews_floating_point_operations_for_a_context(strategy: Strategy, expected: float) -> None:
    with torch.device("meta"):
        network = reviewed(strategy)
        with FlopCounterMode(display=False) as counter:
            network.weights("a")
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.005)


SHAPES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)


@settings(max_examples=25)
@given(SHAPES, st.sampled_from([Once(), Heads(3), PerLayer(), Chunks(1), Chunks(4), Chunks(50)]))
def test_a_number_has_the_variance_of_the_weight_that_it_becomes(shapes: list[tuple[int, int]], strategy: Strategy) -> None:
    layout = Layout.of(nn.Sequential(*(nn.Linear(*shape) for shape in shapes)))
    expected = [torch.full((entry.numel,), Hyperfan().variance(entry, 1.0)) for entry in layout.entries]
    table = strategy.variances(layout, Hyperfan(), 1.0)
    assert table.shape == strategy.shape(layout)
    assert torch.equal(strategy.join(layout, table[None])[0], torch.cat(expected))
    assert int(table.isnan().sum()) == table.numel() - layout.numel  # what is cut


@settings(max_examples=25)
@given(SHAPES, st.integers(1, 3))
def test_a_low_rank_is_the_product_of_its_factors(shapes: list[tuple[int, int]], rank: int) -> None:
    network = nn.Sequential(*(nn.Linear(*shape) for shape in shapes))
    layout, strategy = Layout.of(network), LowRank(rank)
    pieces = torch.randn(2, *strategy.shape(layout))
    weights, place = layout.unflatten(strategy.join(layout, pieces)), 0
    for entry in layout.entries:
        rows, columns = entry.shape[0], entry.numel // entry.shape[0]
        found = weights[entry.names[0]]
        if len(entry.shape) == 2 and rank * (rows + columns) < rows * columns:
            a = pieces[:, 0, place : place + rows * rank].reshape(2, rows, rank)
            place += rows * rank
            b = pieces[:, 0, place : place + columns * rank].reshape(2, rank, columns)
            place += columns * rank
            torch.testing.assert_close(found, a @ b)
        else:
            assert torch.equal(found.flatten(1), pieces[:, 0, place : place + entry.numel])
            place += entry.numel
    assert place == pieces.shape[2]


def test_low_rank_weights_have_the_variance_that_is_asked_for_or_none() -> None:
    layout = Layout.of(nn.Conv2d(8, 64, 5))
    for start in (Hyperfan(), FanOut()):
        table = LowRank(4).variances(layout, start, 3.0)
        weights = layout.unflatten(LowRank(4).join(layout, torch.randn(50, *table.shape) * table.sqrt()))
        assert float(weights["weight"].var()) == pytest.approx(start.variance(layout.entries[0], 3.0), rel=0.1)
    a, b = torch.split(LowRank(4).variances(layout, Zero(), 3.0)[0, :-64], [64 * 4, 4 * 200])
    assert torch.equal(a, torch.full_like(a, 1 / 4)) and not b.any()  # the gradient of B is not 0


def test_one_chunk_is_all_at_once() -> None:
    networks = []
    for strategy in (Once(), Chunks(1, embedding=0)):
        torch.manual_seed(0)
        tasks = Tasks(["a", "b"])
        networks.append(HyperNetwork(nn.Linear(5, 3), tasks, strategy=strategy, residual=False, start=Hyperfan()))
    once, chunk = (network.weights() for network in networks)
    assert all(torch.equal(once[name], chunk[name]) for name in once)
    assert [p.shape for p in networks[0].parameters()] == [p.shape for p in networks[1].parameters()]


@pytest.mark.parametrize("embedding", [0, 6])
def test_chunks_that_change_places_with_their_embeddings_leave_the_weights_as_they_are(embedding: int) -> None:
    torch.manual_seed(0)
    strategy, order = Chunks(4, embedding), torch.tensor([2, 0, 3, 1])
    network = HyperNetwork(nn.Linear(7, 2), Tasks(["a"]), strategy=strategy, residual=False, start=Hyperfan())
    before = network.generator(network.context.vectors("a"))
    with torch.no_grad():
        rows = network.generator.components if embedding else network.context.embeddings["a"]
        rows.copy_(rows[order])
    after = network.generator(network.context.vectors("a"))
    torch.testing.assert_close(after[:, order.argsort()], before)


@pytest.mark.parametrize("strategy", [PerLayer(embedding=0), Chunks(3, embedding=0)])
@pytest.mark.parametrize("context", [Values(), Noise()])
def test_only_tasks_have_an_embedding_for_each_component(strategy: Strategy, context: Values | Noise) -> None:
    with pytest.raises(InputError, match="has one vector for all components: expected embedding > 0"):
        HyperNetwork(target(), context, strategy=strategy)


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in (lambda: Chunks(0), lambda: Heads(1), lambda: LowRank(0)):
        with pytest.raises(InputError, match="expected at least"):
            wrong()


def test_components_are_modules_and_chunks_are_even() -> None:
    layout = Layout.of(target())
    assert PerLayer().shape(layout) == (2, 785 * 100) and Once().shape(layout) == (1, P)
    assert Chunks(100).shape(layout) == (100, math.ceil(P / 100))
    pieces: Tensor = torch.arange(2 * 78_500.0).view(1, 2, -1)
    joined = PerLayer().join(layout, pieces)[0]
    assert joined[78_499] == 78_499 and joined[78_500] == 78_500 and joined[-1] == 78_500 + 1010 - 1
