import networkx as nx
import pytest
import torch
from tests.nn.graph.graphs import dense, random_graph

from polytask.errors import InputError
from polytask.nn.graph import CSR, from_pyg, k_hop, neighbourhoods, random_walks, sample_neighbours, subgraph, to_pyg


def test_k_hop_is_what_a_search_finds() -> None:
    graph = random_graph(30, 32)
    theirs = nx.Graph(torch.stack([graph.rows, graph.columns], 1).tolist())
    for hops in range(4):
        found = k_hop(graph, torch.tensor([5, 2]), hops)
        reach = set(nx.single_source_shortest_path_length(theirs, 5, hops)) if 5 in theirs else {5}
        reach |= set(nx.single_source_shortest_path_length(theirs, 2, hops)) if 2 in theirs else {2}
        assert set(found.tolist()) == reach and len(found) == len(reach) and found[:2].tolist() == [5, 2]
    assert len(k_hop(graph, torch.tensor([5]), 1, limit=1)) <= 2


def test_a_subgraph_has_the_edges_between_its_nodes() -> None:
    graph, nodes = random_graph(weighted=True), torch.tensor([7, 0, 3, 11])
    assert torch.equal(dense(subgraph(graph, nodes)), dense(graph)[nodes][:, nodes])
    with pytest.raises(InputError, match="listed twice"):
        subgraph(graph, torch.tensor([1, 1]))


@pytest.mark.parametrize("hops", [0, 1, 3])
@pytest.mark.parametrize("piece", [1, 7, 2**22])
def test_neighbourhoods_of_many_are_those_of_each(hops: int, piece: int) -> None:
    graph = random_graph(30, 45)
    seeds = torch.tensor([[3, 4], [4, 3], [0, 29], [7, 8]])
    found = neighbourhoods(graph, seeds, hops, piece=piece)
    assert torch.equal(found.nodes[:8], seeds.flatten())
    for sample, own in enumerate(seeds):
        places = (found.owner == sample).nonzero()[:, 0]
        nodes = k_hop(graph, own, hops)
        assert torch.equal(found.nodes[places], nodes)
        mine = found.owner[found.edges[:, 1]] == sample
        assert bool((found.owner[found.edges[mine]] == sample).all())
        ends = found.nodes[found.edges[mine]]
        part = subgraph(graph, nodes)
        expected = torch.stack([nodes[part.columns], nodes[part.rows]], 1)
        assert sorted(ends.tolist()) == sorted(expected.tolist())
        assert torch.equal(graph.columns[found.entries[mine]], ends[:, 0])
        assert torch.equal(graph.rows[found.entries[mine]], ends[:, 1])


def test_limited_neighbourhoods_are_few_distinct_and_uniform() -> None:
    star = torch.stack([torch.zeros(40, dtype=torch.int64), torch.arange(1, 41)], 1)
    graph = CSR.from_entries(*torch.cat([star, star.flip(1)]).unbind(1), (41, 41))
    key = torch.Generator().manual_seed(0)
    found = neighbourhoods(graph, torch.zeros(2000, 1, dtype=torch.int64), 2, limit=5, generator=key)
    others = found.nodes[2000:]
    assert torch.equal(found.owner[2000:], torch.arange(2000).repeat_interleave(5))
    assert len(torch.unique(found.owner[2000:] * 41 + others)) == len(others)
    counts = torch.bincount(others, minlength=41)[1:].double()
    assert float((counts - 250).abs().max()) < 5 * (2000 * 0.125 * 0.875) ** 0.5
    # Two seeds of a sample reach other nodes: of those together five are drawn.
    both = neighbourhoods(random_graph(60, 900), torch.tensor([[0, 1]] * 50), 1, limit=5, generator=key)
    assert torch.bincount(both.owner).tolist() == [7] * 50
    with pytest.raises(InputError, match="a sample lists a seed twice"):
        neighbourhoods(graph, torch.tensor([[1, 2], [3, 3]]), 1)


def test_all_neighbours_sampled_give_the_same_embeddings() -> None:
    graph, seeds = random_graph(40, 60, weighted=True), torch.tensor([9, 1, 30])
    x = torch.randn(40, 2, dtype=torch.float64)
    nodes, local = sample_neighbours(graph, seeds, [-1, -1])
    assert nodes[:3].tolist() == seeds.tolist() and len(nodes.unique()) == len(nodes)
    torch.testing.assert_close((local @ (local @ x[nodes]))[:3], (graph @ (graph @ x))[seeds])


def test_rescaled_samples_keep_sums_in_expectation() -> None:
    graph, generator = random_graph(12, 60, weighted=True), torch.Generator().manual_seed(0)
    x, draws = torch.randn(12, 1, dtype=torch.float64), []
    for _ in range(600):
        nodes, local = sample_neighbours(graph, torch.tensor([4, 2]), [3], generator, rescale=True)
        draws.append((local @ x[nodes])[:2])
    standard = torch.stack(draws).std(0) / 600**0.5
    assert bool(((torch.stack(draws).mean(0) - (graph @ x)[[4, 2]]).abs() < 5 * standard).all())


def test_sampled_neighbours_are_distinct_uniform_and_few() -> None:
    graph, generator = random_graph(12, 60), torch.Generator().manual_seed(0)
    seed, counts = torch.tensor([4]), torch.zeros(12)
    degree = int(graph.degrees[4])
    assert degree > 4
    for _ in range(600):
        nodes, local = sample_neighbours(graph, seed, [3], generator)
        assert local.degrees.tolist() == [3] + [0] * (len(nodes) - 1) and len(nodes) == 4
        counts[nodes[1:]] += 1
    neighbours = dense(graph)[4] > 0
    assert counts[~neighbours].sum() == 0
    expected = 600 * 3 / degree
    assert bool(((counts[neighbours] - expected).abs() < 5 * expected**0.5).all())


def test_walks_follow_edges_and_stay_where_there_are_none() -> None:
    graph = random_graph(12, 8)
    walks = random_walks(graph, torch.arange(12).repeat(20), 5, torch.Generator().manual_seed(0))
    linked = dense(graph) != 0
    for before, after in zip(walks.T[:-1], walks.T[1:], strict=True):
        alone = graph.degrees[before] == 0
        assert bool((linked[before, after] | alone).all()) and torch.equal(before[alone], after[alone])


def test_to_torch_geometric_and_back() -> None:
    data = pytest.importorskip("torch_geometric.data")
    graph = random_graph(weighted=True)
    there = to_pyg(graph, x=torch.randn(12, 3))
    assert there.is_undirected() and there.num_nodes == 12 and there.x.shape == (12, 3)
    assert torch.equal(dense(from_pyg(there)), dense(graph))
    directed = from_pyg(data.Data(edge_index=torch.tensor([[0], [1]]), num_nodes=3))
    assert dense(directed)[1, 0] == 1 and dense(directed).sum() == 1
    with pytest.raises(InputError, match="edge_index"):
        from_pyg(data.Data(num_nodes=3))
