"""The encoder of questions about a graph: levels, parts of large graphs, and what training must not see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.nn.graph import CSR, GRAPH, LINK, NODE, GraphEncoder, adjacency, encoder, joined, questions
from polytask.nn.graph.convolution import linear

NODES = 40


@pytest.fixture
def edges() -> Tensor:
    """Two graphs, nodes 0 to 24 and 25 to 39, without an edge between."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(25, (60, 2), generator=generator)
    second = torch.randint(25, 40, (30, 2), generator=generator)
    both = torch.cat([first, second])
    return torch.unique(both[both[:, 0] != both[:, 1]].sort(1).values, dim=0)


def build(edges: Tensor, features: Tensor | CSR | None = None, **settings: object) -> GraphEncoder:
    torch.manual_seed(1)
    graph_of = (torch.arange(NODES) >= 25).long()
    return GraphEncoder(adjacency(edges, NODES), features, graph_of, 2, width=8, dropout=0.0, **settings).eval()  # type: ignore[arg-type]


def rows() -> dict[str, Tensor]:
    pairs = torch.tensor([[0, 1], [3, 30], [7, 2]])
    return joined(
        [questions(NODE, torch.tensor([4, 0, 39])), questions(LINK, pairs), questions(GRAPH, torch.tensor([1, 0]))]
    )


@pytest.mark.parametrize("kind", ["dense", "sparse", "none"])
def test_a_part_gives_what_the_whole_gives(edges: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(NODES, 5, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    row, column = values.nonzero().unbind(1)
    sparse = CSR.from_entries(row, column, (NODES, 5), values[row, column])
    network = build(edges, {"dense": values, "sparse": sparse, "none": None}[kind])
    whole = network(rows())
    monkeypatch.setattr(encoder, "WHOLE", 0)
    assert torch.allclose(network(rows()), whole, atol=1e-5)
    # With enough neighbours drawn, training sees the same graph without the batch's pairs.
    network.train()
    network.fanout = NODES
    part = network(rows())
    monkeypatch.undo()
    assert torch.allclose(part, network(rows()), atol=1e-5)


def test_rows_stand_for_themselves(edges: Tensor) -> None:
    network, asked = build(edges, torch.rand(NODES, 5)), rows()
    order = torch.tensor([7, 2, 5, 0, 3, 6, 1, 4])
    mixed = network({name: values[order] for name, values in asked.items()})
    assert torch.allclose(mixed, network(asked)[order], atol=1e-6)
    pair = torch.tensor([[3, 30]])
    assert torch.allclose(network(questions(LINK, pair)), network(questions(LINK, pair.flip(1))), atol=1e-6)


def test_a_graph_is_described_by_its_own_nodes(edges: Tensor) -> None:
    features = torch.rand(NODES, 5)
    network = build(edges, features)
    before = network(questions(GRAPH, torch.tensor([0, 1])))
    assert network.features is not None
    network.features[30] += 1
    after = network(questions(GRAPH, torch.tensor([0, 1])))
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("whole", [True, False])
def test_training_does_not_see_the_links_that_it_asks_about(
    edges: Tensor, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.rand(NODES, 5)
    asked = questions(LINK, edges[:3])
    with_links, without = (build(some, features, fanout=NODES) for some in (edges, edges[3:]))
    if not whole:
        monkeypatch.setattr(encoder, "WHOLE", 0)
    assert torch.allclose(with_links.train()(asked), without.train()(asked), atol=1e-6)
    assert not torch.allclose(with_links.eval()(asked), without.eval()(asked), atol=1e-3)


@pytest.mark.parametrize("sparse", [True, False])
def test_it_is_built_again_from_its_settings_and_its_tensors(edges: Tensor, sparse: bool) -> None:
    place = torch.arange(NODES)
    features = CSR.from_entries(place, place % 5, (NODES, 5)) if sparse else torch.rand(NODES, 5)
    network = build(edges, features)
    again = GraphEncoder.like(**network.settings()).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(rows()), network(rows()))


@pytest.mark.parametrize("sparse", [True, False])
def test_another_graph_is_looked_at_with_the_same_network(edges: Tensor, sparse: bool) -> None:
    features = torch.rand(NODES, 5)
    place = torch.arange(NODES)
    other = CSR.from_entries(place, place % 5, (NODES, 5)) if sparse else 3 * torch.rand(NODES, 5) + 1
    first = CSR.from_entries(place, place % 3, (NODES, 5)) if sparse else features
    network, expected = build(edges, first), build(edges[::2], other)
    parameters = {id(parameter) for parameter in network.parameters()}
    network.look_at(adjacency(edges[::2], NODES), other, (torch.arange(NODES) >= 25).long(), 2)
    assert {id(parameter) for parameter in network.parameters()} == parameters
    if not sparse:  # by the first graph's statistics
        expected.centre, expected.spread = features.mean(0), features.std(0, correction=0)
    assert torch.allclose(network(rows()), expected(rows()), atol=1e-5)
    again = GraphEncoder.like(**network.settings()).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(rows()), network(rows()))
    smaller = adjacency(torch.tensor([[0, 1], [1, 2]]), 3)
    network.look_at(smaller, CSR.from_entries(place[:3], place[:3], (3, 5)) if sparse else features[:3])
    assert network(questions(LINK, torch.tensor([[0, 2]]))).shape == (1, 8)


def test_graphs_that_cannot_be_looked_at(edges: Tensor) -> None:
    graph, features = adjacency(edges, NODES), torch.rand(NODES, 5)
    with pytest.raises(InputError, match="4 dense features of a node, expected 5 dense ones"):
        build(edges, features).look_at(graph, features[:, :4])
    with pytest.raises(InputError, match="no features of a node, expected 5 dense ones"):
        build(edges, features).look_at(graph)
    with pytest.raises(InputError, match="a vector was learned for each node, without features"):
        build(edges).look_at(graph, features)


def test_words_are_dropped_in_training_alone(edges: Tensor) -> None:
    place = torch.arange(NODES)
    network = build(edges, CSR.from_entries(place, place % 5, (NODES, 5)))
    asked = questions(NODE, place)
    network.dropout = 0.5
    assert torch.equal(network(asked), network(asked))
    network.train()
    seen = torch.stack([network._first(None) for _ in range(2000)])
    assert not torch.equal(seen[0], seen[1])
    whole = linear(network.inwards, network.sparse.matrix)  # type: ignore[union-attr]
    assert torch.allclose(seen.mean(0), whole, atol=0.05)  # in expectation what they are


def test_features_are_standardised(edges: Tensor) -> None:
    features = torch.rand(NODES, 5)
    features[:, 3] = 7.0  # a constant column has nothing to scale
    assert torch.allclose(build(edges, features)(rows()), build(edges, 100 * features - 3)(rows()), atol=1e-4)


def test_gradients_reach_every_parameter(edges: Tensor) -> None:
    network = build(edges, torch.rand(NODES, 5)).train()
    network(rows()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_questions_about_graphs_need_graphs(edges: Tensor) -> None:
    network = GraphEncoder(adjacency(edges, NODES), torch.rand(NODES, 5), width=8)
    with pytest.raises(InputError, match="a question about whole graphs, expected an encoder that was given graph_of"):
        network(questions(GRAPH, torch.tensor([0])))
