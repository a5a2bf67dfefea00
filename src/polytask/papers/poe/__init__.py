"""PoE, a panel of experts: one encoder, an expert for each domain of dialogue, and one score of how good a response is.

An expert is a domain's adapters in the shared encoder, and its head. It tells a response that fits (``original``) from one
that is out of place (``random``) and one that only looks alike (``adversarial``); the score is the probability that it fits.
Where the domain is known its expert is asked, else all of them. `pairs` makes labelled pairs out of dialogues alone,
`pseudo_labels` keeps what a teacher is sure of, and `turn_level` says how far a score agrees with people.

>>> import torch
>>> import polytask as pt
>>> from polytask.papers.poe import LABELS, Panel
>>> random = torch.manual_seed(0)
>>> def examples(domain, good):  # here what is good lies in a direction of its own in each domain
...     labels = torch.arange(300) % 3
...     return pt.Examples(torch.randn(300, 4) + 2 * (labels == 2)[:, None] * torch.tensor(good), {domain: labels})
>>> data = {"chat": examples("chat", [1.0, 1.0, 0.0, 0.0]), "advice": examples("advice", [1.0, 0.0, -1.0, 0.0])}
>>> encoder = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32))
>>> panel = Panel.build(encoder, list(data), pt.share.Adapter(8), width=32)
>>> fitted = pt.fit(panel.model, data, steps=150, lr=1e-2)
>>> few = examples("news", [0.0, 1.0, -1.0, 0.0])
>>> wider = panel.add("news")  # a new expert, which alone is trained
>>> fitted = pt.fit(wider.model, few.subset(torch.arange(60)), steps=50, batch_size=30, lr=1e-2)
>>> inputs, good = few.inputs[60:], few.targets["news"][60:] == LABELS.index("original")
>>> known, unknown = wider.score(inputs, "news"), panel.score(inputs)  # by its expert; by the two others
>>> float(known[good].mean() - known[~good].mean()) > float(unknown[good].mean() - unknown[~good].mean()) > 0
True

`FirstToken` makes an encoder of `transformers` one for a panel, and `WithMaskedLM` adds the loss of a masked language model.
What is known of the paper's training is that of its predecessor: RoBERTa-large, learning rate 1e-5, batches of 16, at most
128 tokens, 10 epochs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers._roberta import FEED_FORWARD, roberta
from polytask.papers.poe.agreement import by_system, ceiling, interval, turn_level
from polytask.papers.poe.comparison import measure
from polytask.papers.poe.dialogues import FILES
from polytask.papers.poe.pairs import Exchange, Pair, pairs, pseudo_labels, spoiled
from polytask.papers.poe.panel import LABELS, NearestDomain, Panel
from polytask.papers.poe.picture import plot
from polytask.papers.poe.text import FirstToken, WithMaskedLM
from polytask.share import Adapter

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "LABELS",
    "PAPER",
    "Exchange",
    "FirstToken",
    "NearestDomain",
    "Pair",
    "Panel",
    "WithMaskedLM",
    "by_system",
    "ceiling",
    "interval",
    "pairs",
    "pseudo_labels",
    "spoiled",
    "turn_level",
]

_claim = partial(Claim, run=measure, better="higher", needs=FILES, seeds=5)


def _expert() -> nn.Module:
    """The adapters of one of four domains in RoBERTa-large, a bottleneck of 64 behind each block's feed-forward network."""
    from torch import nn

    adapter = Adapter(64, "norm", "relu", start="bert")
    panel = Panel.build(FirstToken(roberta("large")), ["a", "b", "c", "d"], adapter, f"encoder.{FEED_FORWARD}")
    return nn.ParameterList(panel.inserted.parameters_of("a"))


PAPER = Paper(
    slug="poe",
    title="PoE: a Panel of Experts for Generalized Automatic Dialogue Assessment",
    family="language",
    verbs=("share", "balance", "route", "measure"),
    reference="arXiv 2212.08992",
    claims=(
        _claim(
            name="pooled",
            statement="the mean of the panel agrees more with people than one model for all domains: Spearman's correlation "
            "with the mean rating, the mean over six sets",
            method="panel",
            baseline="pooled",
            claimed="the best mean over 16 sets",
            comment="Responses of all systems of a set together.",
        ),
        _claim(
            name="by system",
            statement="so it does within the responses of one system, the mean over systems and sets",
            method="panel by system",
            baseline="pooled by system",
            claimed="not in the paper, as far as is known here",
        ),
        _claim(
            name="known domain",
            statement="the domain's own expert agrees more with people than one model for all domains",
            method="expert",
            baseline="pooled",
            claimed="the best mean over 16 sets",
            comment="FED has no domain that is known: there the whole panel is asked.",
        ),
        _claim(
            name="separate",
            statement="the domain's own expert agrees more with people than a model of the domain alone",
            method="expert",
            baseline="separate",
            claimed="the best mean over 16 sets",
        ),
        _claim(
            name="separate mean",
            statement="the mean of the panel agrees more with people than the mean of models of one domain each",
            method="panel",
            baseline="separate mean",
            claimed="the best mean over 16 sets",
            comment="Models that were trained apart err apart, which helps their mean; experts here have most of their "
            "layers in common.",
        ),
        _claim(
            name="unseen domain",
            statement="on sets whose domain was left out of training the panel agrees more than one model for all others",
            method="panel unseen",
            baseline="pooled unseen",
            claimed="better zero-shot generalisation",
        ),
        _claim(
            name="few",
            statement="a new expert, trained on 32 exchanges of that domain, agrees more than the panel without it",
            method="panel few",
            baseline="panel unseen",
            claimed="easily adapted with few examples",
        ),
        _claim(
            name="few, pooled",
            statement="and more than the one model, trained on the same exchanges in as many steps",
            method="panel few",
            baseline="pooled few",
            claimed="easily adapted with few examples",
        ),
        _claim(
            name="cosine",
            statement="the mean of the panel agrees more with people than the cosine of context and response",
            method="panel",
            baseline="cosine",
            claimed="better than earlier metrics",
            comment="The encoder, which stays as it is, was itself trained so that a reply is near to what it replies to.",
        ),
        _claim(
            name="length",
            statement="and more than the number of words",
            method="panel",
            baseline="length",
            claimed="better than earlier metrics",
        ),
    ),
    scales=(
        Scale(
            name="RoBERTa-large, the encoder without its pooler",
            build=partial(roberta, "large"),
            parameters=354_310_144,
            source="counted: the encoder of the paper's predecessor",
        ),
        Scale(
            name="RoBERTa-base, the encoder without its pooler",
            build=partial(roberta, "base"),
            parameters=124_055_040,
            source="counted",
        ),
        Scale(
            name="RoBERTa-large: the adapters of one expert",
            build=_expert,
            parameters=3_171_840,
            source="24 (2 x 1024 x 64 + 64 + 1024); the paper's bottleneck is not known here",
        ),
    ),
    plot=plot,
)
