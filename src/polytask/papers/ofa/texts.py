"""Everything is a sentence: of nodes, edges, prompts and classes, all embedded by one frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.papers._minilm import embedded

Embed: TypeAlias = Callable[[Sequence[str]], Tensor]
"""From ``K`` sentences to ``(K, D)``. The default is MiniLM's mean over tokens, ``D = 384``, computed once and kept in the
cache folder; the paper's are a DistilBERT for questions (768), e5-large-v2 (1024) and Llama 2 (4096 or 5120)."""


def node_sentence(text: str) -> str:
    """What the encoder is given of a node: a title with its abstract, an atom, a name with its definition."""
    return f"feature node. {text}"


def edge_sentence(text: str) -> str:
    """What it is given of an edge: a kind of bond, a relation, that one cites the other."""
    return f"feature edge. {text}"


def prompt_sentence(text: str) -> str:
    """What it is given of a class, and of the node that says what is to be done."""
    return f"prompt node. {text}"


@dataclass(frozen=True, eq=False)
class Prompt:
    """A task's own sentences, embedded.

    Attributes:
        task: ``(D,)`` of the nodes of interest, which says what is to be done.
        classes: ``(C, D)`` of the classes.
        edge: ``(D,)`` of every edge to and from these nodes.
        query, support: ``(D,)`` in episodes, of the edges from the example that is asked about, and from those that are
            shown, to the classes.
    """

    task: Tensor
    classes: Tensor
    edge: Tensor
    query: Tensor
    support: Tensor

    @classmethod
    def of(cls, task: str, classes: Sequence[str], embed: Embed = embedded) -> Prompt:
        """The prompt of a task in words.

        Args:
            task: what is to be done, as "say which of these fields a paper belongs to".
            classes: the name of each class, and what it means.
            embed: the encoder.
        """
        if not classes:
            raise InputError(f"a task of no classes, {task!r}: expected at least one")
        edges = (
            "prompt edge.",
            "prompt edge for an example that is asked about.",
            "prompt edge for an example with its class.",
        )
        found = embed([*map(prompt_sentence, (task, *classes)), *edges])
        return cls(found[0], found[1:-3], *found[-3:])

    def only(self, classes: Tensor) -> Prompt:
        """The prompt with some of its classes."""
        return Prompt(self.task, self.classes[classes], self.edge, self.query, self.support)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """``(S, C)`` targets of classes ``(S,)``; a row of NaN where one is missing, -1."""
    found = torch.zeros(len(labels), classes)
    there = labels >= 0
    found[there, labels[there]] = 1.0
    found[~there] = torch.nan
    return found


def with_negations(labels: Tensor) -> Tensor:
    """``(S, 2 A)`` targets of ``A`` yes-or-no questions ``(S, A)`` or ``(S,)``, each of which is two classes: all that say
    yes, then all that say no. NaN stays missing.

    >>> with_negations(torch.tensor([1.0, 0.0])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    yes = labels.float().view(len(labels), -1)
    return torch.cat([yes, 1 - yes], 1)
