"""A task on a text-attributed graph: nodes, links or graphs, their labels, and the part of the graph that each sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from polytask.data import Examples
from polytask.errors import InputError, suggest
from polytask.nn.graph import neighbourhoods
from polytask.papers.ofa.graph import TextGraph
from polytask.papers.ofa.texts import Prompt

Level: TypeAlias = Literal["node", "link", "graph"]
Metric: TypeAlias = Literal["accuracy", "auc", "ap"]


class Parts(NamedTuple):
    """What ``B`` samples see of their graph, side by side.

    Attributes:
        texts: ``(M,)`` the row of each node's sentence.
        owner: ``(M,)`` the sample that each node belongs to.
        edges: ``(E, 2)`` source and target, by places among the nodes.
        edge_texts: ``(E,)`` the row of each edge's sentence.
        targets: ``(T,)`` the places of all samples' target nodes.
        size: ``B``.
    """

    texts: Tensor
    owner: Tensor
    edges: Tensor
    edge_texts: Tensor
    targets: Tensor
    size: int


@dataclass(frozen=True, eq=False)
class TextTask:
    """``S`` samples of one task.

    Args:
        name: the task's.
        graph: where its samples are.
        targets: ``(S,)`` nodes, ``(S, 2)`` links, or ``(S,)`` the numbers of graphs.
        labels: ``(S, C)`` 1, 0, or NaN where missing: see `polytask.papers.ofa.one_hot` and `with_negations`.
        prompt: the task's sentences, of ``C`` classes.
        level: ``"graph"`` for graphs; else the shape of ``targets`` says what they are.
        hops: how far a sample sees; the paper has 2, and 3 for links of citation graphs. A graph is seen whole.
        limit: new nodes in each hop, at most; drawn without replacement, where the paper's code draws with it and so may
            have a node twice.
        metric: what `polytask.papers.ofa.OFA.evaluate` reports: ``"accuracy"`` of the class with the largest logit;
            ``"auc"`` or ``"ap"``, the mean over questions that are two classes each, of the differences of their logits.

    A link never sees the edges between its own two nodes, of any type, in either direction, in training or later. The paper
    removes the link or triple that is asked about, and its inverse; in WN18RR many triples of the test data have a mirror
    image among those for training, which would give them away.
    """

    name: str
    graph: TextGraph
    targets: Tensor
    labels: Tensor
    prompt: Prompt
    level: Level | None = None
    hops: int = 2
    limit: int | None = 100
    metric: Metric = "accuracy"

    def __post_init__(self) -> None:
        level = self.level or ("link" if self.targets.ndim == 2 else "node")
        object.__setattr__(self, "level", level)
        shape = (len(self.targets), 2) if level == "link" else (len(self.targets),)
        classes = len(self.prompt.classes)
        for what, name, known in (("level", level, get_args(Level)), ("metric", self.metric, get_args(Metric))):
            if name not in known:
                raise InputError(f"task {self.name!r}: unknown {what} {name!r}: {suggest(name, known)}")
        if self.targets.shape != shape or self.labels.shape != (len(self.targets), classes):
            shapes = f"targets {tuple(self.targets.shape)} and labels {tuple(self.labels.shape)}"
            raise InputError(
                f"task {self.name!r}: {shapes}, expected {shape} and ({len(self.targets)}, {classes}), a {level} task"
            )
        if level == "graph" and self.graph.starts is None:
            raise InputError(f"task {self.name!r}: {self.graph.name} is one graph, expected starts= of several")
        if self.metric != "accuracy" and classes % 2:
            raise InputError(f"task {self.name!r}: {self.metric} of {classes} classes, expected two for each question")
        size = self.graph.incoming.width if level != "graph" or self.graph.starts is None else len(self.graph.starts) - 1
        wrong = ((self.targets < 0) | (self.targets >= size)).view(len(self.targets), -1).any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise InputError(f"task {self.name!r}: sample {row}: {self.targets[row].tolist()}, expected 0 to {size - 1}")
        if level == "link" and bool((self.targets[:, 0] == self.targets[:, 1]).any()):
            row = int((self.targets[:, 0] == self.targets[:, 1]).nonzero()[0])
            raise InputError(f"task {self.name!r}: sample {row}: a link of node {int(self.targets[row, 0])} to itself")

    def __len__(self) -> int:
        return len(self.targets)

    def examples(self, samples: Tensor | None = None) -> Examples:
        """The numbers of samples ``(M,)``, all by default, with their labels, as `polytask.fit` takes them."""
        chosen = torch.arange(len(self)) if samples is None else samples
        return Examples(chosen, {self.name: self.labels[chosen]})

    def parts(self, samples: Tensor, generator: torch.Generator | None = None) -> Parts:
        """What samples ``(B,)`` see, drawn anew each time where there is more than the limit."""
        return (
            self._whole(self.targets[samples]) if self.level == "graph" else self._around(self.targets[samples], generator)
        )

    def _around(self, targets: Tensor, generator: torch.Generator | None) -> Parts:
        seeds = targets.view(len(targets), -1)
        found = neighbourhoods(self.graph.incoming, seeds, self.hops, self.limit, generator)
        first = seeds.numel()
        known = ~(found.edges < first).all(1) if self.level == "link" else torch.ones_like(found.entries, dtype=torch.bool)
        assert self.graph.incoming.values is not None
        texts = self.graph.incoming.values[found.entries[known]]
        nodes = self.graph.nodes[found.nodes]
        return Parts(nodes, found.owner, found.edges[known], texts, torch.arange(first), len(seeds))

    def _whole(self, graphs: Tensor) -> Parts:
        starts, incoming = self.graph.starts, self.graph.incoming
        assert starts is not None and incoming.values is not None
        sizes = starts[graphs + 1] - starts[graphs]
        owner = torch.repeat_interleave(sizes)
        places = torch.arange(len(owner))
        shift = (starts[graphs] - (sizes.cumsum(0) - sizes))[owner]  # from a place to the node's number
        target, entries = incoming.entries_of(places + shift)
        edges = torch.stack([incoming.columns[entries] - shift[target], target], 1)
        return Parts(self.graph.nodes[places + shift], owner, edges, incoming.values[entries], places, len(graphs))
