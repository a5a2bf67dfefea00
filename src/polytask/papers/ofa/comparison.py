"""The claims' experiment: one model for links, nodes and graphs beside a model for each; and relations never trained on.

What the joint network falls short by is its molecules. Tried on a seed that is not the claims' (10), test results of
relations, topics, HIV, BBBP and their mean; "by task" is a loss that is the mean of each task's own mean:

==============================================  ====  ====  ====  ====  ====
a network for each task, 8 epochs               69.2  90.5  69.1  80.2  77.3
joint, by task, 8 epochs                        55.0  76.3  58.9  67.9  64.5
the same, multipliers that stay                 51.7  77.1  61.3  63.9  63.5
the same, layer normalisation                   52.2  66.5  57.0  64.6  60.1
the same, three times the rate                  50.8  72.9  53.8  58.7  59.1
the same, batches of 16                         54.5  74.0  54.4  71.4  63.6
words alone by one network                      55.3  83.0
molecules alone by one network                              60.4  77.6
joint, by task, 32 epochs                       70.7  89.4  62.4  77.5  75.0
joint, over all class nodes, batches of 16      68.0  84.8  65.1  62.4  70.1
joint, over all class nodes, 16 epochs          70.2  88.9  58.3  72.5  72.5
the same, three times the rate                  68.8  86.9  62.4  72.8  72.7
the same, batches of 32                         71.8  91.0  59.6  72.9  73.8
the same, molecules twice as often as words     69.2  88.9  61.6  75.9  73.9
==============================================  ====  ====  ====  ====  ====

All rows are single runs; multipliers fall only in the first joint row, with layer normalisation, with batches of 32 and
in the last. The loss by task, which is not the paper's, and too few steps were most of what words fell short by. Layer
normalisation did not help with the loss by task; it was not tried with the other, nor were batches of one task. Molecules
are not overfitted but slow: after 32 epochs their training AUC is still below that of networks of their own after 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytask.claim import Measurements
from polytask.data import Examples, Goal, Mixture, Multipliers
from polytask.data.graph import split_nodes
from polytask.data.stream import generator
from polytask.papers.ofa.domains import WordNet, molecules
from polytask.papers.ofa.episodes import Episodes
from polytask.papers.ofa.model import OFA, quality
from polytask.papers.ofa.network import PromptNetwork, mlp
from polytask.papers.ofa.task import TextTask
from polytask.training import fit

HIDDEN, LAYERS, BATCH, EPOCHS, EVERY, LR = 96, 3, 64, 16, 2, 1e-3
"""``EVERY``: epochs between evaluations. The paper's joint model has a width of 768, 7 layers, batches of 512 and 50 epochs,
at the same learning rate."""
TRAIN, VALIDATION, TEST = 1000, 300, 600
"""Samples of a task at most; those of molecules are tested on all."""
TASKS = ("relations", "topics", "hiv", "bbbp")
HELD, SHOTS, STEPS, EPISODES = 3, (0, 1, 3), 120, 300
"""Relations held out, samples of each that are shown, training steps of 8 episodes, episodes to test."""

Splits = Mapping[str, Tensor]


def measure(seed: int, data: Path, epochs: int = EPOCHS, steps: int = STEPS) -> Measurements:
    """What the claims compare, in percent.

    ``"TASK ARM"`` is the test accuracy of ``relations`` and ``topics``, and the AUC of ``hiv`` and ``bbbp``, for the arms
    ``joint``, ``ind``, ``text``, which is an MLP on the targets' sentences, and ``majority``; ``"mean ARM"`` is their
    mean. ``"shots K"`` is the accuracy on episodes of three relations that training did not have, with ``K`` samples of
    each shown, and ``"prototypes K"`` that of the nearest mean of the same samples' texts.

    The seed draws the samples, the relations, the weights and the batches. All arms have the same samples, epochs and
    settings, which are fixed, and report the epoch that was best on validation data.
    """
    wordnet = WordNet(data)
    tasks = everything(wordnet, data, seed)
    found = {name: arms(task, splits, seed, epochs) for name, (task, splits) in tasks.items()}
    for name, value in joint(tasks, seed, epochs).items():
        found[name]["joint"] = value
    measured = {f"{name} {arm}": 100 * value for name, values in found.items() for arm, value in values.items()}
    for arm in found[TASKS[0]]:
        measured[f"mean {arm}"] = sum(measured[f"{name} {arm}"] for name in TASKS) / len(TASKS)
    return {**measured, "chance": 100 / HELD, **{name: 100 * value for name, value in unseen(wordnet, seed, steps).items()}}


def everything(wordnet: WordNet, data: Path, seed: int) -> dict[str, tuple[TextTask, Splits]]:
    """The four tasks, each with its samples to train on, to select by and to test."""
    key = generator(seed, 0)
    graph = wordnet.graph()
    sizes = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    rows = [
        _some(wordnet.triples[split], size, key)
        for split, size in zip(("train", "valid", "test"), sizes.values(), strict=True)
    ]
    links, nodes = wordnet.links(graph, torch.cat(rows)), wordnet.nodes(graph)
    ranges = torch.split(torch.arange(len(links)), [len(part) for part in rows])
    found = {
        "relations": (links, dict(zip(sizes, ranges, strict=True))),
        "topics": (nodes, split_nodes(len(nodes), 0.15, 0.3, seed)),
        **{name: molecules(data, name) for name in ("hiv", "bbbp")},
    }
    return {name: (task, {**splits, "train": _some(splits["train"], TRAIN, key)}) for name, (task, splits) in found.items()}


def arms(task: TextTask, splits: Splits, seed: int, epochs: int) -> dict[str, float]:
    """A task by itself: the same network trained on it alone, its texts without the graph, and its most frequent class."""
    held = {task.name: task.examples(splits["test"])}
    train, validation = ({task.name: task.examples(splits[split])} for split in ("train", "validation"))
    found = {}
    for arm in ("ind", "text"):
        torch.manual_seed(seed)
        model = OFA(network(task), [task]) if arm == "ind" else TextOnly(task)
        every = len(splits["train"]) // BATCH
        _fit(model, train, validation, epochs * every, every, f"{task.name}/{task.metric}", seed)
        found[arm] = model.eval().evaluate(held)[task.name][task.metric]
    constant = task.labels[splits["train"]].mean(0).expand(len(splits["test"]), -1)
    return {**found, "majority": quality(constant, task.labels[splits["test"]], task.metric)}


def joint(tasks: Mapping[str, tuple[TextTask, Splits]], seed: int, epochs: int) -> dict[str, float]:
    """All tasks by one network: batches mixed sample by sample, and multipliers that fall as the paper's do."""
    torch.manual_seed(seed)
    model = OFA(network(tasks[TASKS[0]][0]), [task for task, _ in tasks.values()])
    sets = {
        split: {name: task.examples(splits[split]) for name, (task, splits) in tasks.items()}
        for split in ("train", "validation", "test")
    }
    goals = {name: Goal(task.metric, above=math.inf) for name, (task, _) in tasks.items()}
    rule = Multipliers(dict.fromkeys(tasks, 1.0), least=0.2, goals=goals)
    train = Mixture(sets["train"], rule, batch_size=1, turns=BATCH, seed=seed)
    _fit(model, train, sets["validation"], epochs * len(train), len(train), "all/mean", seed)
    found = model.eval().evaluate(sets["test"])
    return {name: found[name][task.metric] for name, (task, _) in tasks.items()}


def unseen(wordnet: WordNet, seed: int, steps: int) -> dict[str, float]:
    """Three relations, neither trained on nor in the graph, told apart from their texts and the samples that are shown."""
    key = generator(seed, 1)
    order = torch.randperm(len(wordnet.names), generator=key)
    held, seen = order[:HELD], order[HELD:]
    graph = wordnet.graph(without=held.tolist())
    train = wordnet.triples["train"]
    task = wordnet.links(graph, _each(train, seen, TRAIN // len(seen), key))
    torch.manual_seed(seed)
    model = OFA(network(task), [task])
    episodes = Episodes(task, classes=seen, ways=HELD, shots=(0, 1, 2, 3), batch_size=8, length=steps, seed=seed)
    _fit(model, {task.name: episodes}, None, steps, steps, None, seed)
    tested = wordnet.links(graph, _each(torch.cat(list(wordnet.triples.values())), held, TEST // HELD, key))
    model, found = OFA(model.network, [tested]).eval(), {}
    for shots in SHOTS:
        asked = Episodes(tested, ways=HELD, shots=shots, batch_size=50, length=EPISODES // 50, seed=seed)
        batches = list(asked.epoch(0))
        found[f"shots {shots}"] = model.evaluate({tested.name: batches})[tested.name]["accuracy"]
        if shots:
            hits = [prototypes(tested, samples).argmax(1) == targets.argmax(1) for samples, targets in batches]
            found[f"prototypes {shots}"] = float(torch.cat(hits).float().mean())
    return found


def prototypes(task: TextTask, episodes: Mapping[str, Tensor]) -> Tensor:
    """``(B, n)`` cosines of a query's texts with the mean of each class's, without learning (Snell et al., 2017)."""
    texts = described(task)
    means = texts[episodes["support"]].mean(2)
    return F.cosine_similarity(texts[episodes["query"]][:, None], means, dim=2)


def described(task: TextTask) -> Tensor:
    """``(S, F)``: the sentences of each sample's targets, side by side; of a graph, their mean."""
    sentences, starts = task.graph.table[task.graph.nodes], task.graph.starts
    if task.level == "graph":
        assert starts is not None
        return torch.stack([sentences[starts[k] : starts[k + 1]].mean(0) for k in task.targets.tolist()])
    return sentences[task.targets].flatten(1)


class TextOnly(nn.Module):
    """The baseline without the graph: an MLP as the network's, with a logit for each class, on the targets' sentences."""

    def __init__(self, task: TextTask) -> None:
        super().__init__()
        self.task, self.texts = task, described(task)
        self.head = mlp(self.texts.shape[1], HIDDEN, task.labels.shape[1])

    def losses(self, batch: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {
            name: F.binary_cross_entropy_with_logits(self.head(self.texts[samples]), targets)
            for name, (samples, targets) in batch.items()
        }

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.parameters()

    @torch.no_grad()
    def evaluate(self, data: Mapping[str, Examples]) -> dict[str, dict[str, float]]:
        samples, targets = data[self.task.name][:]
        assert isinstance(samples, Tensor)
        value = quality(self.head(self.texts[samples]), targets[self.task.name], self.task.metric)
        return {self.task.name: {self.task.metric: value}}


def network(task: TextTask) -> PromptNetwork:
    """The network of all arms."""
    return PromptNetwork(task.graph.table.shape[1], HIDDEN, LAYERS)


def _fit(model: Any, train: Any, validation: Any, steps: int, every: int, monitor: str | None, seed: int) -> None:
    settings: dict[str, Any] = {"optimizer": lambda groups: torch.optim.Adam(groups, lr=LR), "seed": seed}
    fit(model, train, validation, steps=steps, batch_size=BATCH, monitor=monitor, evaluate_every=EVERY * every, **settings)


def _some(rows: Tensor, count: int, key: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=key)[:count]]


def _each(triples: Tensor, relations: Tensor, count: int, key: torch.Generator) -> Tensor:
    """At most ``count`` triples of each relation."""
    return torch.cat([_some(triples[triples[:, 1] == relation], count, key) for relation in relations])
