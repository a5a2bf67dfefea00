"""Learning to branch: a tree of layers, in which each node learns its parent, and each task its leaf."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.share._experts import Bank
from polytask.share._sharing import Pathway, Sharing, sharings
from polytask.share.task_parameters import TaskParameters


@sharings.add("branching")
@dataclass(frozen=True)
class Branching(Sharing):
    """Layers of nodes; each node learns which node below it reads, and each task at which one of the top it leaves.

    A node is a linear layer with ReLU; those of the first layer read the encoder's features. In each training pass a child
    ``c`` reads a mixture of its parents, the softer the higher the temperature ``T`` (Gumbel-softmax)::

        d_c = softmax((theta_c + g) / T),   g = -log(-log U)

    whose largest entry is ``p`` with probability ``softmax(theta_c)_p``, and which is that parent alone as ``T`` goes to 0
    (Guo et al., *Learning to branch for multi-task learning*, ICML 2020, section 3). In evaluation each child reads its most
    probable parent, and only nodes on the way to a task that is asked for run: the tree that was learned. Training does the
    same from ``steps`` on, so that the rest of a run is for the layers of that tree.

    ``T`` falls from ``start`` to ``end`` in equal ratios over ``steps``. A step is a training pass of all tasks; a pass of
    some counts as that part of one. The count is a buffer, so that a run that is resumed goes on where it was.

    Args:
        layers: of nodes, at least 1.
        nodes: of each layer; ``None`` (default) makes as many as there are tasks, as many as a tree can use.
        start, end: the temperature's.
        steps: how long branches are learned; choose about half of a run.

    Two deviations: the paper trains the layers before it learns branches, and trains the final tree from new weights. All
    defaults are our own; the paper's temperatures are not known here.
    """

    name: ClassVar[str] = "branching"
    layers: int = 2
    nodes: int | None = None
    start: float = 5.0
    end: float = 0.5
    steps: int = 200

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise InputError(f"branching: {self.layers} layers, expected at least 1")
        if self.nodes is not None and self.nodes < 1:
            raise InputError(f"branching: {self.nodes} nodes, expected at least 1")
        if not self.start >= self.end > 0:
            raise InputError(f"branching: temperatures {self.start} to {self.end}, expected start >= end > 0")
        if self.steps < 1:
            raise InputError(f"branching: {self.steps} steps, expected at least 1")

    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        return BranchingPathway(width, tasks, self)


class BranchingPathway(Pathway):
    """The nodes of all layers, each child's preference for its parents, and each task's for the nodes of the last layer."""

    passes: Tensor

    def __init__(self, width: int, tasks: Sequence[str], settings: Branching) -> None:
        super().__init__()
        self.settings = settings
        self.nodes = nodes = settings.nodes or len(tasks)
        self.layers = nn.ModuleList([Bank(nodes, width, width) for _ in range(settings.layers)])
        self.parents = nn.ParameterList([torch.zeros(nodes, nodes) for _ in range(settings.layers - 1)])
        self.leaves = TaskParameters({task: torch.zeros(nodes) for task in tasks})
        self.register_buffer("passes", torch.tensor(0))  # of one task each

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        rows = features.reshape(-1, features.shape[-1])
        if self.training or torch.compiler.is_compiling():
            found = self._of_all_nodes(rows, tasks)
        else:
            found = self._along_branches(rows, tasks)
        if self.training:
            self.passes += len(tasks)
        return {task: output.reshape(features.shape) for task, output in found.items()}

    def branches(self) -> dict[str, tuple[int, ...]]:
        """The tree that evaluation uses: for each task the node of every layer on its way, from the first layer to the last.

        Two tasks share all layers up to where their ways part.
        """
        parents = [choice.argmax(1).tolist() for choice in self.parents]
        ways = {}
        for task in self.leaves.tasks:
            way = [int(self.leaves[task].argmax())]
            for parent in reversed(parents):
                way.append(parent[way[-1]])
            ways[task] = tuple(reversed(way))
        return ways

    def _along_branches(self, rows: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        known: dict[tuple[int, ...], Tensor] = {(): rows}
        ways = self.branches()
        for task in tasks:
            for depth, node in enumerate(ways[task]):
                below = ways[task][:depth]
                if (*below, node) not in known:
                    known[*below, node] = self._node(depth, node, known[below])
        return {task: known[ways[task]] for task in tasks}

    def _of_all_nodes(self, rows: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        first, *others = self.layers
        nodes = first(rows.expand(self.nodes, *rows.shape)).relu()
        for layer, parents in zip(others, self.parents, strict=True):
            nodes = layer(torch.einsum("cp,pnw->cnw", self._chosen(parents).to(nodes.dtype), nodes)).relu()
        return {task: torch.einsum("p,pnw->nw", self._chosen(self.leaves[task]).to(nodes.dtype), nodes) for task in tasks}

    def _node(self, depth: int, node: int, x: Tensor) -> Tensor:
        layer = cast(Bank, self.layers[depth])
        return F.linear(x, layer.weight[node].mT, layer.bias[node, 0]).relu()

    def _chosen(self, theta: Tensor) -> Tensor:
        """How much of each parent each child reads, ``(..., parents)``; float32 at least."""
        theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
        likely = F.one_hot(theta.argmax(-1), self.nodes).to(theta.dtype)
        if not self.training:
            return likely
        progress = (self.passes / (len(self.leaves.tasks) * self.settings.steps)).clamp(max=1)
        temperature = self.settings.start * (self.settings.end / self.settings.start) ** progress
        return torch.where(progress < 1, drawn(theta, temperature), likely)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.layers.parameters()
        yield from self.parents.parameters()

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        return self.leaves.of(task)


def drawn(theta: Tensor, temperature: Tensor) -> Tensor:
    """``softmax((theta + g) / temperature)`` along the last dimension, with new Gumbel noise ``g``."""
    noise = -torch.empty_like(theta).exponential_().log()
    return ((theta + noise) / temperature).softmax(-1)
