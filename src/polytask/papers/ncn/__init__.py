"""NCN and NCNC: one pass of a graph network, then for each candidate link a learned sum over common neighbours.

The two losses, of true links and of pairs that are not linked, are named; any balancer takes them.

>>> import torch
>>> import polytask as pt
>>> from polytask.data.graph import GraphData, LinkBatches, split_links
>>> nodes = torch.arange(60)
>>> ring = torch.cat([torch.stack([nodes, (nodes + step) % 60], 1) for step in (1, 2, 3)])
>>> split = split_links(GraphData("ring", 60, ring, torch.eye(60)), seed=0)
>>> seeded = torch.manual_seed(0)
>>> model = preset("cora").build(split.graph, torch.eye(60), depth=1, hidden=16)
>>> fitted = pt.fit(model, LinkBatches(split, 42), split.validation, epochs=20, lr=0.01, monitor="links/auc")
>>> model.eval().evaluate(split.test)["links"]["auc"] > 0.8
True
>>> chances = model.score(torch.tensor([[0, 1], [0, 30]])).sigmoid()
>>> bool(chances[0] > chances[1])
True
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.ncn.comparison import ARMS, FILES, measure
from polytask.papers.ncn.encoder import Encoder
from polytask.papers.ncn.heuristics import adamic_adar, common_count, resource_allocation
from polytask.papers.ncn.model import NCN
from polytask.papers.ncn.picture import plot
from polytask.papers.ncn.predictor import Calibration, LinkPredictor
from polytask.papers.ncn.presets import PRESETS, Preset, preset

__all__ = [
    "ARMS",
    "NCN",
    "PAPER",
    "PRESETS",
    "Calibration",
    "Encoder",
    "LinkPredictor",
    "Preset",
    "adamic_adar",
    "common_count",
    "preset",
    "resource_allocation",
]

_claim = partial(Claim, run=measure, better="higher", needs=FILES, seeds=5)
_COMMENT = "HR@100 in percent; a width of 128 and 25 epochs, where the paper has 256 and 100."


def _parts(name: str, **table: Any) -> nn.ModuleList:
    """Encoder and predictor of a preset, whose parameters do not depend on the graph."""
    chosen = preset(name)
    encoder = Encoder(**{**chosen.encoder, **table})
    return nn.ModuleList([encoder, LinkPredictor(encoder.width, **chosen.predictor)])


PAPER = Paper(
    slug="ncn",
    title="Neural Common Neighbor with Completion for Link Prediction",
    family="graphs",
    verbs=("share", "balance", "measure"),
    reference="ICLR 2024, arXiv 2302.00890",
    claims=(
        *(
            _claim(
                name=f"{title}: over GAE",
                statement=f"on {title} NCN finds more links than the same network without common neighbours",
                method=f"{graph} ncn hits",
                baseline=f"{graph} gae hits",
                claimed=f"NCN before GAE on all seven graphs; NCN {found} HR@100, from memory",
                comment=_COMMENT,
            )
            for graph, title, found in (("cora", "Cora", "89.05"), ("citeseer", "Citeseer", "91.56"))
        ),
        *(
            _claim(
                name=f"{title}: completion",
                statement=f"on {title} completion finds more links than NCN",
                method=f"{graph} ncnc hits",
                baseline=f"{graph} ncn hits",
                claimed=f"NCNC before NCN; {found} HR@100, from memory",
                comment=_COMMENT,
            )
            for graph, title, found in (("cora", "Cora", "89.65"), ("citeseer", "Citeseer", "93.47"))
        ),
        _claim(
            name="count",
            statement="a learned sum over common neighbours finds more links than their number, over both graphs",
            method="mean ncn hits",
            baseline="mean gae+cn hits",
            claimed="NCN before GAE+CN",
            comment=_COMMENT,
        ),
        _claim(
            name="target removal",
            statement="NCN finds more links where a batch's own links are removed from the graph, over both graphs",
            method="mean ncn hits",
            baseline="mean ncn without tlr hits",
            claimed="better with target link removal",
            comment=_COMMENT,
        ),
        _claim(
            name="heuristics",
            statement="NCN finds more links than Adamic-Adar, over both graphs",
            method="mean ncn hits",
            baseline="mean aa hits",
            claimed="NCN before CN, AA and RA on all seven graphs",
            comment=_COMMENT,
        ),
    ),
    scales=(
        Scale(
            name="NCN, ogbl-ppa",
            build=partial(_parts, "ppa", nodes=58),
            parameters=33_538,
            source="the leaderboard of ogbl-ppa",
        ),
        Scale(
            name="NCN, ogbl-ddi",
            build=partial(_parts, "ddi", nodes=4268),
            parameters=1_412_098,
            source="the leaderboard of ogbl-ddi",
        ),
    ),
    plot=plot,
)
