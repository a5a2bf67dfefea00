"""The five pretext tasks, each with a head of its own, on any encoder of nodes."""

from polytask.papers.paretognn.pretext._pretext import NodeEncoder, Pretext, mlp
from polytask.papers.paretognn.pretext.decorrelation import Decorrelation, decorrelation
from polytask.papers.paretognn.pretext.link import LinkReconstruction
from polytask.papers.paretognn.pretext.node_graph import NodeGraph
from polytask.papers.paretognn.pretext.node_subgraph import NodeSubgraph, contrast
from polytask.papers.paretognn.pretext.reconstruction import FeatureReconstruction, scaled_cosine_error

__all__ = [
    "Decorrelation",
    "FeatureReconstruction",
    "LinkReconstruction",
    "NodeEncoder",
    "NodeGraph",
    "NodeSubgraph",
    "Pretext",
    "contrast",
    "decorrelation",
    "mlp",
    "scaled_cosine_error",
]
