"""Tryage: a small model reads a prompt, predicts what each expert of a library would lose on it, and picks one.

The parts are in `polytask.route`: `Expert`, `LossTable`, `Router` with weights and flags, `Bandit`; `polytask serve` puts a
router in front of endpoints. Here are `PerceptiveRouter`, the transformer that learns all experts' losses at once, and
`train_jointly`, which trains the experts too.

>>> from polytask.papers.tryage import CharacterModel
>>> from polytask.route import Example, Expert, LossTable, NGramFeatures, Router
>>> code = ["for i in range(10): print(i)", "def add(a, b): return a + b", "import os; x = [1, 2]", "if x > 0: y = f(x)"]
>>> verse = ["Shall I compare thee to a day", "thou art more lovely", "rough winds do shake", "and summer's lease"]
>>> models = {"code": CharacterModel(3).fit(code[:2]), "verse": CharacterModel(3).fit(verse[:2])}
>>> experts = [Expert(name, model.losses, {"size": model.size}) for name, model in models.items()]
>>> prompts = [*code[2:], *verse[2:]]  # no expert was trained on these
>>> table = LossTable()  # LossTable("losses.db") keeps it
>>> table.fill([Example(prompt) for prompt in prompts], experts)
>>> losses = table.losses([Example(prompt) for prompt in prompts], ["code", "verse"])
>>> router = Router.fit(NGramFeatures(), experts, prompts, losses)
>>> [router.route(prompt).expert for prompt in ("print(x[1])", "the lovely winds do shake thee")]
['code', 'verse']
>>> smaller = min(experts, key=lambda expert: expert.costs["size"]).name
>>> router.route("whatever it is [Flag: small model 100]").expert == smaller
True
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.tryage.characters import CharacterModel
from polytask.papers.tryage.comparison import FILES, measure
from polytask.papers.tryage.joint import train_jointly
from polytask.papers.tryage.perceptive import PerceptiveRouter, bert_small, labelled
from polytask.papers.tryage.picture import plot

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PAPER", "CharacterModel", "PerceptiveRouter", "bert_small", "labelled", "train_jointly"]

_claim = partial(Claim, run=measure, needs=FILES, seeds=5)


def _at_scale() -> nn.Module:
    """The router alone: a small BERT, and a row for each of eleven experts."""
    return PerceptiveRouter(bert_small(), [str(k) for k in range(11)])


PAPER = Paper(
    slug="tryage",
    title="Tryage: Real-time, intelligent Routing of User Prompts to Large Language Models",
    family="dynamic",
    verbs=("route", "measure"),
    reference="arXiv 2308.11601, 2310.19902",
    claims=(
        _claim(
            name="selection",
            statement="the router picks the best of nine experts more often than the nearest model card does, in percent",
            method="router accuracy",
            baseline="card accuracy",
            better="higher",
            claimed="50.9 % against 23.6 % of GPT-3.5-Turbo and 10.8 % of Gorilla, which read about the models",
            comment="A sentence encoder compares the prompt with one line on each expert; no large language model does.",
        ),
        _claim(
            name="single",
            statement="its regret in bits per character is lower than that of the best single model",
            method="router regret",
            baseline="single regret",
            better="lower",
            claimed="close to the best expert at a fraction of the parameters; figures were not found",
        ),
        _claim(
            name="card",
            statement="and lower than that of the nearest model card",
            method="router regret",
            baseline="card regret",
            better="lower",
            claimed="as the selection; regret is not in its tables",
        ),
        _claim(
            name="domains",
            statement="and lower than that of a classifier of domains, each sent to its expert",
            method="router regret",
            baseline="domain classifier regret",
            better="lower",
            claimed="not in its tables",
            comment="The classifier is told the domain of each of the router's prompts, and here one expert is made for "
            "each domain, so that the true domain is nearly the best choice there is.",
        ),
        _claim(
            name="classifier",
            statement="and lower than that of a classifier of the best expert, which sees the same losses",
            method="router regret",
            baseline="best classifier regret",
            better="lower",
            claimed="not in its tables",
            comment="Which expert is best is all that this choice needs; that losses are predicted pays where costs have a "
            "weight.",
        ),
        _claim(
            name="front",
            statement="as the weight of the size rises it covers more of loss and size than the single experts do",
            method="router hypervolume",
            baseline="singles hypervolume",
            better="higher",
            claimed="users explore a Pareto front by flags; figures were not found",
        ),
        _claim(
            name="bandit",
            statement="a router of 105 labelled prompts gets better by what it executes on 945 more",
            method="bandit regret",
            baseline="few regret",
            better="lower",
            claimed="not in its tables",
        ),
        _claim(
            name="joint",
            statement="experts that are trained on what the router would send them lower the loss of what is chosen",
            method="joint loss",
            baseline="apart loss",
            better="lower",
            claimed="end-to-end training is described; figures were not found",
            comment="Two rounds. An expert sees the passages of any domain that the router would send it, and the router "
            "learns again.",
        ),
    ),
    scales=(
        Scale(
            name="a small BERT with pooler, and rows for eleven experts",
            build=_at_scale,
            parameters=28_763_648 + 11 * 513,
            source="counted by the layout of a BERT of 4 layers and width 512; the paper's own figures were not found",
        ),
    ),
    plot=plot,
)
