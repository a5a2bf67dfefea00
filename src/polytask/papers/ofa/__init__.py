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

from polytask.papers.ofa.episodes import Episodes
from polytask.papers.ofa.graph import TextGraph
from polytask.papers.ofa.model import OFA
from polytask.papers.ofa.network import PromptNetwork, RGCNEdgeConv, return_chances
from polytask.papers.ofa.prompts import PromptGraph, joined, prompted, prompted_episodes
from polytask.papers.ofa.task import TextTask
from polytask.papers.ofa.texts import Prompt, one_hot, with_negations

__all__ = [
    "OFA",
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
