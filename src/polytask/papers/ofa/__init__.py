"""OFA: node, link and graph classification in any domain as one task, by one network, for classes told in words.

Whatever a graph's nodes, edges and classes are, they are sentences to one frozen encoder. Here it counts letters; by default
it is MiniLM.

>>> import torch
>>> import polytask as pt
>>> from polytask.data.graph import GraphData
>>> def letters(texts):
...     return torch.tensor([[float(text.count(chr(97 + k))) for k in range(26)] for text in texts])
>>> nodes = torch.arange(60)
>>> ring = torch.cat([torch.stack([nodes, (nodes + step) % 60], 1) for step in (2, 4)])
>>> texts = [f"a page on {('zebras', 'foxes')[k % 2]} and {'x' * (k % 5)}" for k in range(60)]
>>> graph = TextGraph.build(GraphData("pages", 60, ring), texts, ["links to"], embed=letters)
>>> animals = Prompt.of("say what a page is on", ["zebras", "foxes"], embed=letters)
>>> linked = Prompt.of("say whether two pages have a link", ["they have", "they do not have"], embed=letters)
>>> pairs = torch.cat([ring, torch.stack([nodes, (nodes + 1) % 60], 1)])
>>> tasks = [
...     TextTask("animal", graph, nodes, one_hot(nodes % 2, 2), animals, hops=1),
...     TextTask("link", graph, pairs, with_negations(torch.arange(180) < 120), linked, hops=1, metric="auc"),
... ]
>>> seeded = torch.manual_seed(0)
>>> model = OFA(PromptNetwork(26, hidden=16, layers=2), tasks)
>>> train = pt.Mixture({task.name: task.examples() for task in tasks}, batch_size=8, turns=4)
>>> fitted = pt.fit(model, train, steps=60, lr=0.01)
>>> found = model.eval().evaluate({task.name: task.examples() for task in tasks})
>>> found["animal"]["accuracy"] > 0.9 and found["link"]["auc"] > 0.9
True
"""

from __future__ import annotations

from functools import partial

from polytask.claim import Claim
from polytask.paper import Paper, Scale
from polytask.papers.ofa.comparison import measure
from polytask.papers.ofa.domains import FILES
from polytask.papers.ofa.episodes import Episodes
from polytask.papers.ofa.graph import TextGraph
from polytask.papers.ofa.model import OFA
from polytask.papers.ofa.network import PromptNetwork, RGCNEdgeConv, return_chances
from polytask.papers.ofa.picture import plot
from polytask.papers.ofa.prompts import PromptGraph, joined, prompted, prompted_episodes
from polytask.papers.ofa.task import TextTask
from polytask.papers.ofa.texts import Prompt, one_hot, with_negations

__all__ = [
    "OFA",
    "PAPER",
    "Episodes",
    "Prompt",
    "PromptGraph",
    "PromptNetwork",
    "RGCNEdgeConv",
    "TextGraph",
    "TextTask",
    "joined",
    "one_hot",
    "prompted",
    "prompted_episodes",
    "return_chances",
    "with_negations",
]

_claim = partial(Claim, run=measure, better="higher", needs=FILES, seeds=5)
_COMMENT = "Accuracy of links and nodes, AUC of molecules, in percent; width 96, 3 layers, 1,000 samples a task, 16 epochs."
_UNSEEN = "Accuracy in percent on 300 episodes of three relations of WN18RR; trained on 960 episodes of the other relations."

PAPER = Paper(
    slug="ofa",
    title="One for All: Towards Training One Graph Model for All Classification Tasks",
    family="graphs",
    verbs=("share", "balance", "route", "measure"),
    reference="ICLR 2024, arXiv 2310.00149",
    claims=(
        _claim(
            name="joint",
            statement="one network for links, nodes and graphs loses less than 2 points to a network for each task",
            method="mean joint",
            baseline="mean ind",
            margin=-2.0,
            claimed="joint training is competitive with training by data set",
            comment=_COMMENT
            + " Words are learned together as well as alone, molecules are not: their two classes differ little beside what "
            "differs between tasks, and one network needs many more steps to tell them; the paper has 50 epochs of sets "
            "hundreds of times as large, and passes through HIV four times in each.",
        ),
        _claim(
            name="majority",
            statement="the joint network is better than the most frequent class, over all tasks",
            method="mean joint",
            baseline="mean majority",
            claimed="classification in all domains by one network",
            comment=_COMMENT,
        ),
        _claim(
            name="links: the graph",
            statement="the joint network tells relations better than an MLP on the two words' sentences",
            method="relations joint",
            baseline="relations text",
            claimed="competitive with graph networks of a single task",
            comment=_COMMENT,
        ),
        _claim(
            name="the graph",
            statement="the joint network is better than an MLP for each task on the targets' sentences, over all tasks",
            method="mean joint",
            baseline="mean text",
            claimed="competitive with graph networks of a single task",
            comment=_COMMENT
            + " An MLP learns the classes in fewer steps than a network that has to read them from their texts.",
        ),
        _claim(
            name="zero-shot",
            statement="relations that training did not have are told apart by their texts alone, better than by chance",
            method="shots 0",
            baseline="chance",
            claimed="zero-shot classification of unseen classes, which earlier graph models cannot do",
            comment=_UNSEEN,
        ),
        _claim(
            name="few-shot",
            statement="with three samples of each such relation shown, more are told apart than by the texts alone",
            method="shots 3",
            baseline="shots 0",
            claimed="in-context learning from a few samples without fine-tuning",
            comment=_UNSEEN,
        ),
        _claim(
            name="prototypes",
            statement="with three samples shown, more are told apart than by the nearest mean of these samples' texts",
            method="shots 3",
            baseline="prototypes 3",
            claimed="competitive with few-shot methods of a single domain",
            comment=_UNSEEN,
        ),
    ),
    scales=(
        Scale(
            name="joint, sentences of width 768, as the authors' code holds it",
            build=partial(PromptNetwork, 768, projected=True),
            parameters=28_925_953,
            source="counted from the layers of the authors' code, whose attention has two projections that it does not use",
        ),
        Scale(
            name="the same, what is used of it",
            build=partial(PromptNetwork, 768),
            parameters=27_746_305,
            source="counted from the same layers, without these projections",
        ),
    ),
    plot=plot,
)
