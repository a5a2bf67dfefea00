"""PRES: a memory of a stream whose states are predicted and corrected, so that batches of events can be larger.

The losses of events, of pairs without one, and of coherence are named; any balancer takes them.

>>> import torch
>>> import polytask as pt
>>> from polytask.data.temporal import Events, split_events
>>> place = torch.arange(400)
>>> split = split_events(Events("ring", place % 8, (place % 8 + 1) % 8, place, nodes=8))
>>> seeded = torch.manual_seed(0)
>>> model = pres(8, 16, neighbours=3)
>>> train, validation = split.batches("train", 40), split.batches("validation", 20)
>>> fitted = pt.fit(model, train, validation, epochs=2, monitor="links/ap", evaluate_every=len(train))
>>> model.eval().observe(validation)  # the state goes on from the end of training
>>> sorted(model.evaluate(split.batches("test", 20))["links"])
['ap', 'auc']
>>> model.score(torch.tensor([1]), torch.tensor([2]), torch.tensor([400.0])).shape
torch.Size([1])
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.events import TGN, tgn
from polytask.paper import Paper, Scale
from polytask.papers.pres.comparison import ARMS, FILES, measure
from polytask.papers.pres.increments import Increments
from polytask.papers.pres.memory import PresMemory, incoherence
from polytask.papers.pres.model import PRES, distortion, pending, pres
from polytask.papers.pres.picture import plot
from polytask.papers.pres.released import ReleasedMemory, released_incoherence

__all__ = [
    "ARMS",
    "PAPER",
    "PRES",
    "TGN",
    "Increments",
    "PresMemory",
    "ReleasedMemory",
    "distortion",
    "incoherence",
    "pending",
    "pres",
    "released_incoherence",
    "tgn",
]

_claim = partial(Claim, run=measure, better="higher", needs=FILES, seeds=5)
_COMMENT = "20,000 messages of UCI, states of width 32 embedded as they are, 3 epochs; the paper has five larger streams."

PAPER = Paper(
    slug="pres",
    title="PRES: Toward Scalable Memory-Based Dynamic Graph Neural Networks",
    family="graphs",
    verbs=("balance", "scale"),
    reference="ICLR 2024, arXiv 2402.04284",
    claims=(
        _claim(
            name="four times the batch",
            statement="PRES with batches of 400 is less than a point of AP below TGN with batches of 100",
            method="pres 400 ap",
            baseline="tgn 100 ap",
            margin=-1.0,
            claimed="comparable AP at up to 4 times the batch",
            comment=_COMMENT,
        ),
        *(
            _claim(
                name=f"batches of {size}",
                statement=f"with batches of {size} PRES has a higher AP than TGN",
                method=f"pres {size} ap",
                baseline=f"tgn {size} ap",
                claimed="higher AP than TGN at large batches",
                comment=_COMMENT,
            )
            for size in (400, 1600)
        ),
        *(
            _claim(
                name=f"{arm} alone",
                statement=f"with batches of 400 TGN with {arm} alone has a higher AP than TGN",
                method=f"{arm} 400 ap",
                baseline="tgn 400 ap",
                claimed="each half helps, both together most",
                comment=_COMMENT,
            )
            for arm in ("coherence", "correction")
        ),
        _claim(
            name="mechanism",
            statement="with the correction states after batches of 400 are nearer to those of one event at a time",
            method="corrected distortion",
            baseline="plain distortion",
            better="lower",
            claimed="prediction and correction make up for what a batch ignores",
            comment="By the weights of PRES, on validation events; in percent of the norm of the states that the cell alone "
            "has after one event at a time. A prediction lies near the old state, and holds back a state that moves; with "
            "spans in a node's own gaps or in updates, too.",
        ),
    ),
    scales=(
        Scale(
            name="memory cell, Wikipedia",
            build=lambda: PresMemory(9227, 172, edge_width=172).cell,
            parameters=444_792,
            source="counted by the GRU's formula from messages of 688 and states of 172",
        ),
    ),
    plot=plot,
)
