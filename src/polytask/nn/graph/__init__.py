"""Graphs: sparse products, neighbour sets, sampling and augmentation, on plain tensors, without compiled extensions."""

from polytask.nn.graph.augment import drop_edges, dropout, mask_features
from polytask.nn.graph.convolution import GCNConv, linear
from polytask.nn.graph.csr import CSR, SparseBuffer, adjacency
from polytask.nn.graph.normalise import propagate, random_walk, symmetric, with_loops
from polytask.nn.graph.overlap import NeighbourSets, cap_degrees, common_neighbours, neighbour_sets
from polytask.nn.graph.pyg import from_pyg, to_pyg
from polytask.nn.graph.sampling import Sampled, k_hop, random_walks, sample_neighbours, subgraph

__all__ = [
    "CSR",
    "GCNConv",
    "NeighbourSets",
    "Sampled",
    "SparseBuffer",
    "adjacency",
    "cap_degrees",
    "common_neighbours",
    "drop_edges",
    "dropout",
    "from_pyg",
    "k_hop",
    "linear",
    "mask_features",
    "neighbour_sets",
    "propagate",
    "random_walk",
    "random_walks",
    "sample_neighbours",
    "subgraph",
    "symmetric",
    "to_pyg",
    "with_loops",
]
