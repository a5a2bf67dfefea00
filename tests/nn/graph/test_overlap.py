import networkx as nx
import pytest
import torch
from tests.nn.graph.graphs import dense, random_graph

from polytask.errors import InputError
from polytask.nn.graph import adjacency, cap_degrees, common_neighbours, neighbour_sets, overlap

ALL = torch.cartesian_prod(torch.arange(12), torch.arange(12))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("way", ["_merged", "_searched"])
def test_neighbour_sets_by_a_loop(way: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_merged", getattr(overlap, way))
    graph = random_graph()
    linked = dense(graph) != 0
    sets = neighbour_sets(graph, ALL, chunk)
    expected = (
        linked[ALL[:, 0]] & linked[ALL[:, 1]],
        linked[ALL[:, 0]] & ~linked[ALL[:, 1]],
        ~linked[ALL[:, 0]] & linked[ALL[:, 1]],
    )
    for found, wanted in zip(sets, expected, strict=True):
        assert torch.equal(dense(found) != 0, wanted) and found.values is None
    assert torch.equal(dense(common_neighbours(graph, ALL, chunk)), dense(sets.common))
    assert torch.equal(sets.common.degrees + sets.first.degrees, graph.degrees[ALL[:, 0]])
    assert torch.equal(sets.common.degrees + sets.second.degrees, graph.degrees[ALL[:, 1]])


def test_the_count_is_an_entry_of_the_squared_adjacency_and_networkx_agrees() -> None:
    graph = random_graph(seed=3)
    squared = (dense(graph) @ dense(graph))[ALL[:, 0], ALL[:, 1]]
    assert torch.equal(common_neighbours(graph, ALL).degrees.double(), squared)
    theirs = nx.Graph(torch.stack([graph.rows, graph.columns], 1).tolist())
    for pair in ([0, 1], [2, 7]):
        ours = common_neighbours(graph, torch.tensor([pair])).columns.tolist()
        assert sorted(nx.common_neighbors(theirs, *pair)) == ours


def test_no_pairs_and_no_edges() -> None:
    none = torch.zeros(0, 2, dtype=torch.int64)
    for found in (*neighbour_sets(random_graph(), none), common_neighbours(adjacency(none, 12), ALL)):
        assert len(found.columns) == 0 and torch.equal(found @ torch.ones(12, 2), torch.zeros(found.height, 2))
    assert neighbour_sets(random_graph(), none).common.shape == (0, 12)


def test_a_rectangular_graph_with_ids_beyond_32_bits() -> None:
    far = 2**45
    rows, columns = torch.tensor([0, 0, 1, 1]), torch.tensor([1, far, 2, far])
    graph = overlap.CSR.from_entries(rows, columns, (2, far + 1))
    common, first, second = neighbour_sets(graph, torch.tensor([[0, 1]]))
    assert (common.columns.tolist(), first.columns.tolist(), second.columns.tolist()) == ([far], [1], [2])


def test_capped_rows_keep_their_sum_exactly_and_their_product_in_expectation() -> None:
    graph = random_graph(12, 60)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 1, dtype=torch.float64)
    draws = []
    for _ in range(600):
        capped = cap_degrees(graph, 3, generator)
        draws.append(capped @ x)
        torch.testing.assert_close(capped.sums(), graph.degrees.float())
    assert int(capped.degrees.max()) == 3
    standard = torch.stack(draws).std(0) / 600**0.5
    assert bool(((torch.stack(draws).mean(0) - dense(graph) @ x).abs() <= 5 * standard + 1e-9).all())
    assert torch.equal(dense(cap_degrees(graph, 100)), dense(graph))
    with pytest.raises(InputError, match="capped at 0"):
        cap_degrees(graph, 0)
