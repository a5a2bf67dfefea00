"""The network: relational graph convolutions whose messages have the edges' texts, and a logit for every class node."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.papers.ofa.prompts import RELATIONS, PromptGraph

Norm: TypeAlias = Literal["batch", "layer"]
NORMS: dict[str, type[nn.BatchNorm1d] | type[nn.LayerNorm]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class Messages(NamedTuple):
    """Which messages are averaged with one another; the same for all layers.

    Attributes:
        source: ``(E,)`` the node that each message is from.
        slot: ``(E,)`` the pair of a target and a relation that it is averaged in, of ``S`` pairs by relation.
        counts: ``(S,)`` how many.
        target: ``(S,)`` the node that each pair belongs to.
        bounds: where each relation's pairs begin, and ``S``.
    """

    source: Tensor
    slot: Tensor
    counts: Tensor
    target: Tensor
    bounds: list[int]

    @classmethod
    def of(cls, edges: Tensor, types: Tensor, nodes: int, relations: int) -> Messages:
        """Those of edges ``(E, 2)`` with types ``(E,)`` below ``relations``."""
        keys, slot, counts = torch.unique(types * nodes + edges[:, 1], return_inverse=True, return_counts=True)
        begin = torch.arange(relations + 1, device=keys.device) * nodes
        bounds: list[int] = torch.searchsorted(keys, begin).tolist()
        return cls(edges[:, 0], slot, counts, keys % nodes, bounds)


class RGCNEdgeConv(nn.Module):
    """``sum_r mean_{j in N_r(i)} relu(x_j + e_ij) W_r + x_i W_root + b``, where each edge has features ``e_ij``.

    Schlichtkrull et al., *Modeling relational data with graph convolutional networks*, 2018, with features of edges as in
    One for All. A node that no edge leads to keeps the root's part alone. Weights are Glorot's, the bias 0.

    Args:
        inputs, outputs: widths.
        relations: the number of types of edges.
    """

    def __init__(self, inputs: int, outputs: int, relations: int = len(RELATIONS)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(relations, inputs, outputs))
        self.root = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        bound = math.sqrt(6 / (inputs + outputs))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.root, -bound, bound)

    def forward(self, x: Tensor, edges: Tensor, messages: Messages) -> Tensor:
        """``(M, outputs)`` of nodes ``(M, inputs)`` and edges ``(E, inputs)``."""
        sent = (x[messages.source] + edges).relu()
        sums = sent.new_zeros(len(messages.counts), sent.shape[1]).index_add(0, messages.slot, sent)
        means = sums / messages.counts[:, None].to(sums.dtype)
        spans = zip(messages.bounds, messages.bounds[1:], self.weight, strict=False)
        arrived = torch.cat([means[start:end] @ weight for start, end, weight in spans])
        out: Tensor = (x @ self.root + self.bias).to(arrived.dtype)
        return out.index_add(0, messages.target, arrived)


class PromptNetwork(nn.Module):
    """Logits of the class nodes of a `PromptGraph`.

    Sentences of nodes and edges pass one linear layer. After ``layers`` of `RGCNEdgeConv`, each with normalisation and, but
    for the last, ReLU, a class node's outputs of all layers are averaged with the softmax of their products with its input,
    over the root of the width; an MLP with layers of twice the width and of the width makes the logit.

    Args:
        inputs: ``D``, the width of sentences.
        hidden: the width; the paper's is 768.
        layers: the paper's joint model has 7, its models of one data set 5.
        attend: whether all layers' outputs are averaged so; else the last one's counts.
        projected: queries and keys of this average pass a linear layer each. The authors' code has these layers, and does
            not use them; the default is without.
        dropout: in the MLP; in the authors' code, too, the convolutions have none.
        norm: ``"batch"``, as the paper has it, or ``"layer"``, which does not depend on what else is in the batch: domains
            whose statistics differ, and small batches, are hard on the former.
        positions: so many steps of a random walk whose chances to return describe each node (Dwivedi et al., *Graph neural
            networks with learnable structural and positional representations*, ICLR 2022); an option of the paper's, put
            beside the projected sentence. 0 for none.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int = 768,
        layers: int = 7,
        *,
        attend: bool = True,
        projected: bool = False,
        dropout: float = 0.15,
        norm: Norm = "batch",
        positions: int = 0,
    ) -> None:
        super().__init__()
        if min(inputs, hidden, layers) < 1 or positions < 0 or norm not in NORMS:
            given = f"inputs {inputs}, hidden {hidden}, layers {layers}, positions {positions}, norm {norm!r}"
            raise InputError(f"{given}: expected >= 1, >= 1, >= 1, >= 0, and 'batch' or 'layer'")
        self.attend, self.positions = attend, positions
        make = NORMS[norm]
        width = hidden + positions
        self.project = nn.Linear(inputs, hidden)
        self.walks = make(positions) if positions else None
        self.edge_walks = nn.Parameter(torch.randn(positions)) if positions else None
        self.layers = nn.ModuleList(RGCNEdgeConv(width, width) for _ in range(layers))
        self.norms = nn.ModuleList(make(width) for _ in range(layers))
        self.query = nn.Linear(width, width, bias=False) if projected else nn.Identity()
        self.key = nn.Linear(width, width, bias=False) if projected else nn.Identity()
        self.head = mlp(width, width, 1, dropout, norm)

    def forward(self, graph: PromptGraph) -> Tensor:
        """``(K,)`` logits, in the order of the graph's class nodes."""
        x, edges = self.embedded(graph)
        messages = Messages.of(graph.edges, graph.types, len(x), len(RELATIONS))
        first, outputs = x[graph.classes], []
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = norm(layer(x, edges, messages))
            if number < len(self.layers) - 1:
                x = x.relu()
            outputs.append(x[graph.classes])
        logits: Tensor = self.head(self._pooled(first, torch.stack(outputs, 1)) if self.attend else outputs[-1])
        return logits[:, 0]

    def embedded(self, graph: PromptGraph) -> tuple[Tensor, Tensor]:
        """Nodes ``(M, width)`` and edges ``(E, width)`` before the first layer."""
        sentences = self.project(graph.sentences.to(self.project.weight.dtype))
        x, edges = sentences[graph.nodes], sentences[graph.edge_texts]
        if self.walks is None or self.edge_walks is None:
            return x, edges
        chances = self.walks(return_chances(graph.edges, graph.owner, self.positions).to(x.dtype))
        return torch.cat([x, chances], 1), torch.cat([edges, self.edge_walks.to(x.dtype).expand(len(edges), -1)], 1)

    def _pooled(self, first: Tensor, outputs: Tensor) -> Tensor:
        """``(K, width)`` from the inputs ``(K, width)`` and all layers' outputs ``(K, layers, width)``."""
        products = torch.einsum("kw,klw->kl", self.query(first), self.key(outputs)) / math.sqrt(first.shape[1])
        return torch.einsum("kl,klw->kw", products.softmax(1), outputs)


def mlp(inputs: int, hidden: int, outputs: int, dropout: float = 0.15, norm: Norm = "batch") -> nn.Sequential:
    """Layers of twice the width and of the width, each with normalisation, ReLU and dropout, and a linear one."""
    steps: list[nn.Module] = []
    for before, after in ((inputs, 2 * hidden), (2 * hidden, hidden)):
        steps += [nn.Linear(before, after), NORMS[norm](after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*steps, nn.Linear(hidden, outputs))


def return_chances(edges: Tensor, owner: Tensor, steps: int) -> Tensor:
    """``(M, steps)``: the chance that a random walk from a node is back at it after 1, 2, ... steps.

    In memory that grows with the square of the largest sample's nodes.

    Args:
        edges: ``(E, 2)`` source and target, between nodes of one sample.
        owner: ``(M,)`` the sample of each node.
        steps: how many.

    >>> triangle = torch.tensor([[0, 1], [1, 0], [1, 2], [2, 1], [2, 0], [0, 2]])
    >>> return_chances(triangle, torch.zeros(3, dtype=torch.int64), 3)[0].tolist()
    [0.0, 0.5, 0.25]
    """
    counts = torch.bincount(owner)
    ordered, order = owner.sort(stable=True)
    place = torch.empty_like(owner)
    place[order] = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[ordered]
    size = int(counts.max())
    walk = torch.zeros(len(counts), size, size, device=owner.device)
    walk[owner[edges[:, 0]], place[edges[:, 0]], place[edges[:, 1]]] = 1.0
    walk = walk / walk.sum(2, keepdim=True).clamp(min=1)
    power, found = walk, []
    for _ in range(steps):
        found.append(power.diagonal(dim1=1, dim2=2)[owner, place])
        power = power @ walk
    return torch.stack(found, 1)
