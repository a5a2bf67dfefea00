"""Graphs: sparse products, neighbour sets, sampling and augmentation, on plain tensors, without compiled extensions;
and what a model remembers of nodes in a stream of events."""

from polytask.nn.graph.augment import drop_edges, dropout, mask_features
from polytask.nn.graph.convolution import GCNConv, linear
from polytask.nn.graph.csr import CSR, SparseBuffer, adjacency
from polytask.nn.graph.embedding import Around, AttentionEmbedding, IdentityEmbedding, TimeProjection
from polytask.nn.graph.encoder import GRAPH, LINK, NODE, GraphEncoder, joined, questions
from polytask.nn.graph.memory import TemporalMemory, Updated
from polytask.nn.graph.messages import LastMessages, alternating, first_rows, last_rows
from polytask.nn.graph.node_table import NodeTable, Snapshot
from polytask.nn.graph.normalise import propagate, random_walk, symmetric, with_loops
from polytask.nn.graph.overlap import NeighbourSets, cap_degrees, common_neighbours, neighbour_sets
from polytask.nn.graph.pyg import from_pyg, to_pyg
from polytask.nn.graph.recent import Recent, RecentNeighbours
from polytask.nn.graph.sampling import (
    Neighbourhoods,
    Sampled,
    k_hop,
    neighbourhoods,
    random_walks,
    sample_neighbours,
    subgraph,
)
from polytask.nn.graph.time import TimeEncoding

__all__ = [
    "CSR",
    "GRAPH",
    "LINK",
    "NODE",
    "Around",
    "AttentionEmbedding",
    "GCNConv",
    "GraphEncoder",
    "IdentityEmbedding",
    "LastMessages",
    "NeighbourSets",
    "Neighbourhoods",
    "NodeTable",
    "Recent",
    "RecentNeighbours",
    "Sampled",
    "Snapshot",
    "SparseBuffer",
    "TemporalMemory",
    "TimeEncoding",
    "TimeProjection",
    "Updated",
    "adjacency",
    "alternating",
    "cap_degrees",
    "common_neighbours",
    "drop_edges",
    "dropout",
    "first_rows",
    "from_pyg",
    "joined",
    "k_hop",
    "last_rows",
    "linear",
    "mask_features",
    "neighbour_sets",
    "neighbourhoods",
    "propagate",
    "questions",
    "random_walk",
    "random_walks",
    "sample_neighbours",
    "subgraph",
    "symmetric",
    "to_pyg",
    "with_loops",
]
