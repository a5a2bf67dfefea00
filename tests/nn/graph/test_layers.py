"""Normalised adjacencies, convolutions and augmentation."""

import pytest
import torch
from tests.nn.graph.graphs import dense, random_graph

from polytask.errors import InputError
from polytask.nn.graph import (
    GCNConv,
    adjacency,
    drop_edges,
    dropout,
    linear,
    mask_features,
    propagate,
    random_walk,
    symmetric,
    with_loops,
)


@pytest.mark.parametrize("weighted", [False, True])
def test_normalisations(weighted: bool) -> None:
    graph = random_graph(weighted=weighted)
    whole = dense(graph)
    looped = whole + torch.eye(12, dtype=torch.float64)
    scale = looped.sum(1).rsqrt()
    torch.testing.assert_close(dense(with_loops(graph)), looped)
    torch.testing.assert_close(dense(symmetric(graph)), scale[:, None] * looped * scale, rtol=1e-6, atol=1e-7)
    x = torch.randn(12, 3, dtype=torch.float64)
    torch.testing.assert_close(propagate(graph, x), scale[:, None] * looped * scale @ x, rtol=1e-6, atol=1e-6)
    mean = dense(random_walk(graph)).sum(1)
    torch.testing.assert_close(mean, (whole.sum(1) > 0).double())


def test_isolated_nodes_and_loops_are_no_accident() -> None:
    graph = adjacency(torch.tensor([[0, 1], [0, 0]]), 3)
    assert dense(symmetric(graph, loops=False))[2].tolist() == [0, 0, 0]
    assert dense(random_walk(graph))[2].tolist() == [0, 0, 0]
    assert dense(with_loops(graph)).diagonal().tolist() == [1, 1, 1]


def test_a_convolution_is_torch_geometrics() -> None:
    pyg = pytest.importorskip("torch_geometric.nn")
    graph, x = random_graph(), torch.randn(12, 5)
    ours, theirs = GCNConv(5, 4), pyg.GCNConv(5, 4)
    theirs.lin.weight.data, theirs.bias.data = ours.linear.weight.data, ours.bias.data
    torch.testing.assert_close(ours(graph, x), theirs(x, torch.stack([graph.columns, graph.rows])))


def test_sparse_features_go_through_a_linear_layer_as_dense_ones_do() -> None:
    graph, layer = random_graph(), torch.nn.Linear(12, 4)
    x = dense(graph).float()
    torch.testing.assert_close(linear(layer, graph), linear(layer, x))
    dropped = dropout(graph, 0.5)
    assert not isinstance(dropped, torch.Tensor) and set(dense(dropped).flatten().tolist()) <= {0.0, 2.0}
    assert dropout(graph, 0.5, training=False) is graph


def test_dropped_edges_are_the_same_in_expectation() -> None:
    graph, generator = random_graph(weighted=True), torch.Generator().manual_seed(0)
    mean = sum(dense(drop_edges(graph, 0.3, rescale=True, generator=generator)) for _ in range(600)) / 600
    torch.testing.assert_close(mean, dense(graph), atol=0.25, rtol=0.0)
    kept = drop_edges(graph.with_values(None), 0.3, generator=generator)
    assert kept.values is None and set(kept.keys.tolist()) < set(graph.keys.tolist())
    assert drop_edges(graph, 0.0) is graph
    with pytest.raises(InputError, match=r"rate 1\.0"):
        drop_edges(graph, 1.0)


def test_masked_features_are_whole_columns() -> None:
    masked = mask_features(torch.ones(5, 1000), 0.3, torch.Generator().manual_seed(0))
    assert bool((masked == masked[0]).all()) and 0.6 < float(masked.mean()) < 0.8
