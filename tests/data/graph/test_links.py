import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.data.graph import GraphData, LinkBatches, non_edges, split_links, split_nodes
from polytask.errors import InputError
from polytask.nn.graph import adjacency


def ring(nodes: int = 40) -> GraphData:
    places = torch.arange(nodes)
    edges = torch.cat([torch.stack([places, (places + step) % nodes], 1) for step in (1, 2, 3)])
    return GraphData("ring", nodes, edges)


@settings(deadline=None)
@given(st.integers(2, 9), st.data())
def test_every_pair_that_is_not_linked_can_be_drawn_and_no_other(nodes: int, data: st.DataObject) -> None:
    pairs = [(i, j) for j in range(nodes) for i in range(j)]
    linked = data.draw(st.sets(st.sampled_from(pairs)))
    graph = adjacency(torch.tensor(sorted(linked), dtype=torch.int64).reshape(-1, 2), nodes)
    free = set(pairs) - linked
    found = non_edges(graph, len(free), torch.Generator().manual_seed(0))
    assert len(found) == len(free) and set(map(tuple, found.tolist())) == free
    with pytest.raises(InputError, match="not linked"):
        non_edges(graph, len(free) + 1)


def test_pairs_are_uniform_and_distinct() -> None:
    graph, key = ring(12).adjacency(), torch.Generator().manual_seed(0)
    counts = torch.zeros(12, 12)
    for _ in range(800):
        i, j = non_edges(graph, 3, key).unbind(1)
        assert len({*zip(i.tolist(), j.tolist(), strict=True)}) == 3
        counts[i, j] += 1
    drawn = counts[counts > 0]
    assert len(drawn) == 66 - 36
    expected = 800 * 3 / 30
    assert bool(((drawn - expected).abs() < 5 * expected**0.5).all())


def test_pairs_of_many_nodes_are_numbered_exactly() -> None:
    n = 3_000_000
    graph = adjacency(torch.tensor([[0, 1], [n - 2, n - 1]]), n)
    i, j = non_edges(graph, 50_000, torch.Generator().manual_seed(0)).unbind(1)
    assert bool((i >= 0).all() and (i < j).all() and (j < n).all())
    assert len(torch.unique(i * n + j)) == 50_000


def test_a_split_is_a_partition_with_negatives_of_its_own() -> None:
    data = ring()
    split = split_links(data, 0.1, 0.2, seed=1)
    assert (len(split.validation.positive), len(split.test.positive), len(split.train)) == (12, 24, 84)
    edges = torch.cat([split.train, split.validation.positive, split.test.positive])
    assert set(map(tuple, edges.sort(1).values.tolist())) == set(map(tuple, data.edges.sort(1).values.tolist()))
    negatives = torch.cat([split.validation.negative, split.test.negative])
    assert len(negatives) == 36 == len(set(map(tuple, negatives.tolist())))
    assert not data.adjacency().find(*negatives.unbind(1))[0].any()
    assert torch.equal(split.graph.keys, adjacency(split.train, 40).keys)
    again, other = split_links(data, 0.1, 0.2, seed=1), split_links(data, 0.1, 0.2, seed=2)
    assert torch.equal(again.train, split.train) and not torch.equal(other.train, split.train)


def test_empty_sets_and_directed_graphs_are_refused() -> None:
    with pytest.raises(InputError, match=r"ring: 120 edges split 0 / 0\.2 make 0 for validation"):
        split_links(ring(), 0.0, 0.2)
    with pytest.raises(InputError, match="make 60 for validation, 60 for test, 0 for training"):
        split_links(ring(), 0.5, 0.5)
    with pytest.raises(InputError, match="directed"):
        split_links(GraphData("arrows", 3, torch.tensor([[0, 1]]), directed=True))
    with pytest.raises(InputError, match="0 for validation"):
        split_nodes(4, 0.1, 0.5)


def test_batches_are_a_function_of_the_epoch_and_shared_by_processes() -> None:
    split = split_links(ring(), seed=0)
    stream = LinkBatches(split, 20)
    assert len(stream) == 4
    first = list(stream.epoch(3))
    assert all(torch.equal(a.positive, b.positive) for a, b in zip(first[2:], stream.epoch(3, skip=2), strict=True))
    assert len(first) == 4 and all(len(links.positive) == len(links.negative) == 20 for links in first)
    seen = torch.cat([links.positive for links in first])
    assert len(torch.unique(seen, dim=0)) == 80
    shares = [list(LinkBatches(split, 20, rank=rank, world=3).epoch(3)) for rank in range(3)]
    joined = torch.cat([share[0].positive for share in shares])
    assert torch.equal(torch.unique(joined, dim=0), torch.unique(first[0].positive, dim=0))
    with pytest.raises(InputError, match="batch size 85, expected 1 to 84"):
        LinkBatches(split, 85)


def test_nodes_are_split_once_each() -> None:
    parts = split_nodes(torch.arange(10, 60), 0.2, 0.3, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"validation": 10, "test": 15, "train": 25}
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(10, 60))
