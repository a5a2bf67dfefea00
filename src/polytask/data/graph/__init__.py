"""Graphs as data: read from files, split by nodes or by links, and read as batches of links."""

from polytask.data.graph.data_set import graph_data_set, load_graph_tasks
from polytask.data.graph.graph import GraphData
from polytask.data.graph.links import LinkBatches, Links, LinkSplit, non_edges, split_links
from polytask.data.graph.load import load_graph
from polytask.data.graph.nodes import split_nodes
from polytask.data.graph.ogb import read_ogb
from polytask.data.graph.other import ask_about, load_other
from polytask.data.graph.schema import GraphSchema
from polytask.data.graph.tables import read_graph_tables
from polytask.data.graph.targets import GraphTarget

__all__ = [
    "GraphData",
    "GraphSchema",
    "GraphTarget",
    "LinkBatches",
    "LinkSplit",
    "Links",
    "ask_about",
    "graph_data_set",
    "load_graph",
    "load_graph_tasks",
    "load_other",
    "non_edges",
    "read_graph_tables",
    "read_ogb",
    "split_links",
    "split_nodes",
]
