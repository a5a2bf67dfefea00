"""ParetoGNN: one encoder of nodes, pre-trained by five tasks without labels that are balanced by the min-norm solver.

A pretext task (`polytask.papers.paretognn.pretext`) is a module that takes any encoder of nodes; their losses are named, and
any balancer takes them. The paper's is below.

>>> import torch
>>> import polytask as pt
>>> from polytask.balance import LossMGDA
>>> from polytask.nn.graph import adjacency
>>> nodes = torch.arange(60)
>>> ring = adjacency(torch.cat([torch.stack([nodes, (nodes + step) % 60], 1) for step in (1, 2, 3)]), 60)
>>> seeded = torch.manual_seed(0)
>>> model = pareto_gnn(ring, torch.eye(60), widths=(32, 16), hidden=32)
>>> batches = PretextBatches(ring, batch_size=20)
>>> fitted = pt.fit(model, batches, steps=20, balance=LossMGDA(normalise="l2"), schedule="constant")
>>> list(fitted.history[-1]["loss"])
['link', 'recon', 'ming', 'minsg', 'decor']
>>> model.embed().shape
torch.Size([60, 16])
"""

from __future__ import annotations

from functools import partial

from torch import nn

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.paretognn.batches import PretextBatch, PretextBatches
from polytask.papers.paretognn.comparison import ARMS, FILES, measure
from polytask.papers.paretognn.encoder import Encoder
from polytask.papers.paretognn.evaluation import evaluate_links, evaluate_nodes
from polytask.papers.paretognn.model import PRETEXTS, ParetoGNN, pareto_gnn
from polytask.papers.paretognn.partition import spectral_partition
from polytask.papers.paretognn.parts import Induced, Neighbourhood, Part
from polytask.papers.paretognn.picture import NAMES, plot
from polytask.papers.paretognn.presets import PRESETS, Preset, preset
from polytask.papers.paretognn.pretext import (
    Decorrelation,
    FeatureReconstruction,
    LinkReconstruction,
    NodeGraph,
    NodeSubgraph,
    Pretext,
)

__all__ = [
    "ARMS",
    "PAPER",
    "PRESETS",
    "PRETEXTS",
    "Decorrelation",
    "Encoder",
    "FeatureReconstruction",
    "Induced",
    "LinkReconstruction",
    "Neighbourhood",
    "NodeGraph",
    "NodeSubgraph",
    "ParetoGNN",
    "Part",
    "Preset",
    "Pretext",
    "PretextBatch",
    "PretextBatches",
    "evaluate_links",
    "evaluate_nodes",
    "pareto_gnn",
    "preset",
    "spectral_partition",
]

_claim = partial(Claim, run=measure, needs=tuple(FILES.values()), seeds=5)
_score = partial(_claim, method="pareto score", better="higher")
_COMMENT = (
    "Mean of four tasks on three graphs, in percent; 40 steps and widths (64, 32), where the paper has 10,000 steps and "
    "(512, 256) on 11 graphs; parts by spectral bisection, not METIS."
)


def _heads(width: int = 256, hidden: int = 512, features: int = 500) -> nn.ModuleList:
    """What the tasks have of their own, on Pubmed's features."""
    contrasted = NodeSubgraph(width, hidden)
    return nn.ModuleList(
        [LinkReconstruction(width, hidden), FeatureReconstruction(width, features), NodeGraph(width), contrasted]
    )


PAPER = Paper(
    slug="paretognn",
    title="Multi-task Self-supervised Graph Neural Networks Enable Stronger Task Generalization",
    family="graphs",
    verbs=("share", "balance", "measure"),
    reference="ICLR 2023, arXiv 2210.02016",
    claims=(
        *(
            _score(
                name=f"over {NAMES[arm]}",
                statement=f"ParetoGNN is better over all tasks than pre-training by the task {arm!r} alone",
                baseline=f"{arm} score",
                claimed="the best average over tasks",
                comment=_COMMENT,
            )
            for arm in PRETEXTS
        ),
        _score(
            name="over the best single task",
            statement="ParetoGNN is better over all tasks than whichever pretext task turns out best",
            baseline="best single score",
            claimed="the best average over tasks",
            comment=_COMMENT + " The best is chosen for each seed on the reported scores, which favours it.",
        ),
        *(
            _score(
                name=f"over {words}",
                statement=f"the min-norm weights are better over all tasks than {words}",
                baseline=f"{arm} score",
                claimed=claimed,
                comment=_COMMENT,
            )
            for arm, words, claimed in (
                ("equal", "equal weights", "better than equal weights"),
                ("random", "random weights", "not compared with"),
                ("pcgrad", "PCGrad", "not compared with"),
            )
        ),
        _claim(
            name="rank",
            statement="ParetoGNN has a better mean rank over graphs and tasks than equal weights",
            method="pareto rank",
            baseline="equal rank",
            better="lower",
            claimed="the best mean rank",
            comment=_COMMENT,
        ),
    ),
    scales=(
        Scale(
            name="encoder, Pubmed",
            build=partial(Encoder, 500),
            parameters=389_378,
            source="a count: 500·512 + 512 + 512·256 + 256, batch norms 2·512 + 2·256, two PReLUs",
        ),
        Scale(
            name="heads, Pubmed",
            build=_heads,
            parameters=132_097 + 194_536 + 65_536 + 262_912,
            source="a count of the tasks that have some: links, features, node and graph, node and subgraph",
        ),
    ),
    plot=plot,
)
