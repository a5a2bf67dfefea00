"""Prompt graphs: nodes of interest and class nodes, beside what samples see, turn every task into the same one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polytask.papers.ofa.task import Parts, TextTask

FEATURE, TO_PROMPT, TO_CLASS, FROM_PROMPT, FROM_CLASS = RELATIONS = range(5)
"""Types of edges: between the graph's own nodes; from target nodes to the node of interest; from that to the classes; and
back again, from it to the targets, and from the classes to it."""


class PromptGraph(NamedTuple):
    """Many samples' graphs side by side, as the network reads them.

    Attributes:
        sentences: ``(U, D)`` embedded, those that occur.
        nodes: ``(M,)`` the row of each node's sentence: all samples' own nodes, their nodes of interest, then the classes.
        edges: ``(E, 2)`` source and target.
        edge_texts: ``(E,)`` the row of each edge's sentence.
        types: ``(E,)`` 0 to 4.
        classes: ``(K,)`` the places of the class nodes, sample by sample.
        owner: ``(M,)`` the sample, or the episode, of each node.
    """

    sentences: Tensor
    nodes: Tensor
    edges: Tensor
    edge_texts: Tensor
    types: Tensor
    classes: Tensor
    owner: Tensor


def prompted(task: TextTask, samples: Tensor, generator: torch.Generator | None = None) -> PromptGraph:
    """Samples ``(B,)``, each with its node of interest and a node for every class.

    The targets and the node of interest see one another, and that and the classes; in tasks of graphs, classes only listen.
    """
    parts = task.parts(samples, generator)
    count, classes = parts.size, len(task.prompt.classes)
    interest = len(parts.texts) + torch.arange(count)
    each = (len(parts.texts) + count + torch.arange(count * classes)).view(count, classes)
    centres, centre = interest[parts.owner[parts.targets]], interest[:, None].expand_as(each)
    links = [
        _links(parts.targets, centres, TO_PROMPT),
        _links(centres, parts.targets, FROM_PROMPT),
    ]
    links += [_links(centre, each, TO_CLASS)]
    if task.level != "graph":
        links += [_links(each, centre, FROM_CLASS)]
    own = torch.stack([task.prompt.task, task.prompt.edge])
    nodes = torch.cat([torch.zeros(count, dtype=torch.int64), torch.arange(2, 2 + classes).repeat(count)])
    texts = torch.ones(sum(len(edges) for edges, _ in links), dtype=torch.int64)
    owner = torch.cat([parts.owner, torch.arange(count), torch.arange(count).repeat_interleave(classes)])
    return _assembled(task, parts, torch.cat([own, task.prompt.classes]), nodes, links, texts, each.flatten(), owner)


def prompted_episodes(
    task: TextTask, episodes: Mapping[str, Tensor], generator: torch.Generator | None = None
) -> PromptGraph:
    """Episodes, each of one sample that is asked about and of others that are shown with their classes.

    Every sample has a node of interest, the ``n`` class nodes are an episode's own: the query leads to all of them, and
    every support to its class. Within a sample the targets lead to the node of interest; it leads back to those of links and
    graphs.

    Args:
        task: whose samples they are.
        episodes: as `polytask.papers.ofa.Episodes` gives them: ``query`` ``(B,)``, ``classes`` ``(B, n)``, ``support``
            ``(B, n, k)``, those of each class.
        generator: of what the samples see.
    """
    query, classes, support = (episodes[name] for name in ("query", "classes", "support"))
    count, ways, shots = support.shape
    parts = task.parts(torch.cat([query, support.flatten()]), generator)
    interest = len(parts.texts) + torch.arange(parts.size)
    each = (len(parts.texts) + parts.size + torch.arange(count * ways)).view(count, ways)
    centres = interest[parts.owner[parts.targets]]
    links = [_links(parts.targets, centres, TO_PROMPT)]
    if task.level != "node":
        links += [_links(centres, parts.targets, FROM_PROMPT)]
    inner = sum(len(edges) for edges, _ in links)
    links += [_links(interest[:count, None].expand_as(each), each, TO_CLASS)]
    links += [_links(interest[count:].view(count, ways, shots), each[:, :, None].expand(count, ways, shots), FROM_CLASS)]
    own = torch.stack([task.prompt.task, task.prompt.edge, task.prompt.query, task.prompt.support])
    nodes = torch.cat([torch.zeros(parts.size, dtype=torch.int64), 4 + classes.flatten()])
    texts = torch.tensor([1, 2, 3]).repeat_interleave(torch.tensor([inner, count * ways, count * ways * shots]))
    episode = torch.arange(count)
    of_sample = torch.cat([episode, episode.repeat_interleave(ways * shots)])
    owner = torch.cat([of_sample[parts.owner], of_sample, episode.repeat_interleave(ways)])
    return _assembled(task, parts, torch.cat([own, task.prompt.classes]), nodes, links, texts, each.flatten(), owner)


def joined(graphs: Sequence[PromptGraph]) -> PromptGraph:
    """Graphs of several tasks as one."""
    if len(graphs) == 1:
        return graphs[0]
    rows = places = samples = 0
    moved = []
    for graph in graphs:
        moved.append(
            PromptGraph(
                graph.sentences,
                graph.nodes + rows,
                graph.edges + places,
                graph.edge_texts + rows,
                graph.types,
                graph.classes + places,
                graph.owner + samples,
            )
        )
        rows, places = rows + len(graph.sentences), places + len(graph.nodes)
        samples += int(graph.owner.max()) + 1
    return PromptGraph(*(torch.cat(columns) for columns in zip(*moved, strict=True)))


def _links(source: Tensor, target: Tensor, kind: int) -> tuple[Tensor, int]:
    return torch.stack([source.flatten(), target.flatten()], 1), kind


def _assembled(
    task: TextTask,
    parts: Parts,
    own: Tensor,
    nodes: Tensor,
    links: Sequence[tuple[Tensor, int]],
    texts: Tensor,
    classes: Tensor,
    owner: Tensor,
) -> PromptGraph:
    """The graph's own nodes and edges, then those of the prompt, whose texts are rows of ``own``."""
    rows, places = torch.unique(torch.cat([parts.texts, parts.edge_texts]), return_inverse=True)
    kinds = [torch.full((len(edges),), kind) for edges, kind in ((parts.edges, FEATURE), *links)]
    return PromptGraph(
        torch.cat([task.graph.table[rows], own]),
        torch.cat([places[: len(parts.texts)], len(rows) + nodes]),
        torch.cat([parts.edges, *(edges for edges, _ in links)]),
        torch.cat([places[len(parts.texts) :], len(rows) + texts]),
        torch.cat(kinds),
        classes,
        owner,
    )
