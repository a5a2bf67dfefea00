"""NAT: links in time from small dictionaries of neighbours, which each node keeps and two nodes join.

The losses of events and of pairs without one are named; any balancer takes them.

>>> import torch
>>> import polytask as pt
>>> from polytask.data.temporal import Events, split_events
>>> place = torch.arange(400)
>>> split = split_events(Events("ring", place % 8, (place % 8 + 1) % 8, place, nodes=8))
>>> seeded = torch.manual_seed(0)
>>> model = NAT(8, 16, sizes=(4, 4), state_width=8)
>>> train, validation = split.batches("train", 40), split.batches("validation", 20)
>>> fitted = pt.fit(model, train, validation, epochs=2, lr=0.01, monitor="links/ap", evaluate_every=len(train))
>>> model.eval().observe(validation)  # the state goes on from the end of training
>>> sorted(model.evaluate(split.batches("test", 20))["links"])
['ap', 'auc']
>>> chances = model.score(torch.tensor([1, 1]), torch.tensor([2, 5]), torch.tensor([400.0, 400.0]))
>>> bool(chances[0] > chances[1])
True
"""

from __future__ import annotations

from functools import partial
from typing import Any

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.nat.cache import NeighbourCache, chances, hashed
from polytask.papers.nat.comparison import ARMS, FILES, measure
from polytask.papers.nat.heuristics import HEURISTICS, common_count, edge_bank
from polytask.papers.nat.joint import Joined, Pooling, Slots, join
from polytask.papers.nat.model import NAT, PRESETS, RELEASED
from polytask.papers.nat.picture import plot

__all__ = [
    "ARMS",
    "HEURISTICS",
    "NAT",
    "PAPER",
    "PRESETS",
    "RELEASED",
    "Joined",
    "NeighbourCache",
    "Pooling",
    "Slots",
    "chances",
    "common_count",
    "edge_bank",
    "hashed",
    "join",
]

_claim = partial(Claim, run=measure, needs=FILES, seeds=5)
_COMMENT = (
    "AP in percent; 20,000 messages of UCI, 3 epochs, batches of 200; the paper has seven streams and up to 50 epochs."
)


def _wikipedia() -> Any:
    """The authors' network on Wikipedia: 9,227 nodes whose 172 features are zeros, 172 features of an event."""
    import torch

    return NAT(9227, 172, edge_width=172, features=torch.zeros(9227, 172), **PRESETS["wikipedia"], **RELEASED)


PAPER = Paper(
    slug="nat",
    title="Neighborhood-aware Scalable Temporal Network Representation Learning",
    family="graphs",
    verbs=("share", "scale", "measure"),
    reference="LoG 2022, arXiv 2209.01084",
    claims=(
        *(
            _claim(
                name=f"{name}{kind and ', inductive'}",
                statement=f"NAT predicts events{where} better than {what}",
                method=f"nat{kind} ap",
                baseline=f"{arm}{kind} ap",
                better="higher",
                claimed=claimed,
                comment=_COMMENT,
            )
            for kind, where in (("", ""), (" inductive", " that touch an unseen node"))
            for name, arm, what, claimed in (
                ("over TGN", "tgn", "TGN", "+1.2 % over the best baseline, +4.2 % inductive, over seven streams"),
                ("neighbours", "hop 0", "its states alone", "neighbours in common are what states cannot say"),
                ("two hops", "hop 1", "with hop 1 alone", "a second hop is of use"),
                ("codes", "no codes", "without the codes of hops", "a drop without them"),
                ("over EdgeBank", "edge bank", "whether a pair has met", "not in the paper"),
                ("over common neighbours", "common neighbours", "the number of common neighbours", "not in the paper"),
            )
        ),
        _claim(
            name="speed",
            statement="an epoch of NAT takes less time than one of TGN",
            method="nat seconds",
            baseline="tgn seconds",
            better="lower",
            claimed="1.6 to 4.0 times faster than baselines without joint features, 4.1 to 76.7 times than those with",
            comment="Both are polytask's own; validation is counted in.",
        ),
    ),
    scales=(
        Scale(
            name="NAT, Wikipedia",
            build=_wikipedia,
            parameters=218_011,
            source="counted from the layers of the authors' code that act",
        ),
    ),
    plot=plot,
)
