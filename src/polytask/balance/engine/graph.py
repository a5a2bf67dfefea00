"""What autograd recorded of the losses: where shared parameters are used, and where the graph can be cut in two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor
from torch.autograd.graph import GradientEdge

from polytask.balance.engine.uses import Use, leaf, uses

Node: TypeAlias = Any
"""A node of autograd's graph: ``torch.autograd.graph.Node``, whose subclasses are made when torch runs."""


@dataclass
class Segment:
    """A stretch of the graph that every path from the losses runs through.

    Attributes:
        top: the node at which gradients come in, and its outputs that have one; ``None`` for the losses themselves.
        uses: where shared parameters are used whose gradients follow from what the layer got and what comes back.
        direct: the other parameters that are used in this segment, and in no other.
        bottom: as ``top``, of the next segment; ``None`` for the last.
        size: numbers that come back to ``uses``, for one task.
        names: the kinds of its nodes.
    """

    top: tuple[Node, tuple[int, ...]] | None
    uses: list[Use] = field(default_factory=list)
    direct: list[Tensor] = field(default_factory=list)
    bottom: tuple[Node, tuple[int, ...]] | None = None
    size: int = 0
    names: set[str] = field(default_factory=set)

    @property
    def used(self) -> list[Node]:
        """The nodes of ``uses``: one node may use a weight and a bias."""
        return list(dict.fromkeys(use.node for use in self.uses))


def edges_of(cut: tuple[Node, tuple[int, ...]] | None) -> list[GradientEdge]:
    return [] if cut is None else [GradientEdge(cut[0], output) for output in cut[1]]


def segments(losses: Sequence[Tensor], shared: Sequence[Tensor], largest: int, own_first: bool = False) -> list[Segment]:
    """Cut the graph of ``losses`` where one node separates what is above from what is below.

    The first segment ends as early as it can, so that it is the tasks' own parts wherever all share one representation; each
    other one ends at the first such place after ``largest`` numbers.

    Args:
        losses: scalars.
        shared: parameters to find; every other leaf is a direct parameter of its segment, too.
        largest: the size at which a segment ends.
        own_first: have all uses of other leaves in the first segment.
    """
    wanted, count = {id(p) for p in shared}, len(losses)
    roots = list(dict.fromkeys(loss.grad_fn for loss in losses if loss.grad_fn is not None))
    order = _from_losses_to_leaves(roots)
    found = {node: uses(node, wanted, count) for node in order}
    direct = _direct_leaves(order, found)
    for node, there in found.items():
        found[node] = [use for use in there if id(use.parameter) not in direct]
    below = {node: _edges(node, found[node]) for node in order}
    needed = _that_lead_somewhere(order, below, found)
    order = _reached(roots, order, below, needed)

    remaining = Counter(id(child.variable) for node in order for child, _ in below[node] if _is_leaf(child))
    # Direct parameters with uses on both sides of where we are, or that have to be above the first cut.
    spanning = {key for key in remaining if key not in wanted} if own_first else set()
    open_edges: dict[Node, set[int]] = {root: {0} for root in roots if root in needed}
    parts = [Segment(None)]
    ends = set(roots)
    for node in order:
        outputs = tuple(sorted(open_edges[node]))
        part = parts[-1]
        full = part.size >= largest or len(parts) == 1
        if len(open_edges) == 1 and not spanning and full and node not in ends:
            part.bottom = (node, outputs)
            part = Segment(top=(node, outputs))
            parts.append(part)
        del open_edges[node]
        part.names.add(node.name())
        part.uses += found[node]
        part.size += sum(use.size for use in found[node])
        for child, output in below[node]:
            if not _is_leaf(child):
                if child in needed:
                    open_edges.setdefault(child, set()).add(output)
                continue
            key = id(child.variable)
            if all(p is not child.variable for p in part.direct):
                part.direct.append(child.variable)
            remaining[key] -= 1
            (spanning.add if remaining[key] else spanning.discard)(key)
    return parts


def leaves(losses: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that the losses depend on."""
    stack: list[Node] = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen, found = set(stack), dict[Tensor, None]()
    while stack:
        node = stack.pop()
        if _is_leaf(node):
            found[node.variable] = None
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return list(found)


def _from_losses_to_leaves(roots: Sequence[Node]) -> list[Node]:
    """All nodes but leaves, each before those that its gradient flows to.

    What leads to one leaf alone, as the weights that mixed precision has converted, comes directly after what uses it: then
    the tasks' own parts lie before what they have in common.
    """
    order: list[Node] = []
    seen: set[Node] = set()
    alone: dict[Node, bool] = {}
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(_below(root, alone)))]
        while stack:
            node, children = stack[-1]
            for child in children:
                if child not in seen:
                    seen.add(child)
                    stack.append((child, iter(_below(child, alone))))
                    break
            else:
                order.append(node)
                stack.pop()
    return order[::-1]


def _below(node: Node, alone: dict[Node, bool]) -> list[Node]:
    """What a node's gradient flows to but leaves; what leads to one leaf alone is last: seen last, it is first in order."""
    found = [child for child, _ in node.next_functions if child is not None and not _is_leaf(child)]
    return found if len(found) < 2 else sorted(found, key=lambda child: _leads_to_one_leaf(child, alone))


def _leads_to_one_leaf(node: Node, known: dict[Node, bool]) -> bool:
    """Whether there is one way down, and one leaf; what is found of the nodes on the way is added to ``known``."""
    way: list[Node] = []
    answer = True
    while not _is_leaf(node):
        if node in known:
            answer = known[node]
            break
        way.append(node)
        below = [child for child, _ in node.next_functions if child is not None]
        if len(below) != 1:
            answer = False
            break
        (node,) = below
    known.update(dict.fromkeys(way, answer))
    return answer


def _direct_leaves(order: Sequence[Node], found: Mapping[Node, Sequence[Use]]) -> set[int]:
    """Parameters that some node uses in a way that no layer's formula covers: those are taken whole, by autograd."""
    direct: set[int] = set()
    handled = {(node, use.slot) for node in order for use in found[node]}
    chains: set[Node] = set()  # a transposition or a cast between a weight and its layer belongs to the layer's use
    for node, slot in handled:
        child = node.next_functions[slot][0]
        while not _is_leaf(child):
            chains.add(child)
            child = child.next_functions[0][0]
    for node in order:
        if node in chains:
            continue
        for slot, (child, _) in enumerate(node.next_functions):
            if child is None or (node, slot) in handled:
                continue
            parameter = leaf(child)
            if parameter is not None:
                direct.add(id(parameter[0]))
    return direct


def _edges(node: Node, handled: Sequence[Use]) -> list[tuple[Node, int]]:
    slots = {use.slot for use in handled}
    return [edge for slot, edge in enumerate(node.next_functions) if edge[0] is not None and slot not in slots]


def _that_lead_somewhere(
    order: Sequence[Node], below: Mapping[Node, Sequence[tuple[Node, int]]], found: Mapping[Node, Sequence[Use]]
) -> set[Node]:
    needed: set[Node] = set()
    for node in reversed(order):
        if found[node] or any(_is_leaf(child) or child in needed for child, _ in below[node]):
            needed.add(node)
    return needed


def _reached(
    roots: Sequence[Node], order: Sequence[Node], below: Mapping[Node, Sequence[tuple[Node, int]]], needed: set[Node]
) -> list[Node]:
    """Without the casts and transpositions that belong to uses, and what lies below nothing needed."""
    reached = {root for root in roots if root in needed}
    for node in order:
        if node in reached:
            reached.update(child for child, _ in below[node] if child in needed)
    return [node for node in order if node in reached]


def _is_leaf(node: Node) -> bool:
    return hasattr(node, "variable")
