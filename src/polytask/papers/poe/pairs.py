"""Pairs that a machine can label: real responses, responses of others, and responses that were spoiled.

Of the paper's ways to spoil a response these need no further model: words are shuffled, dropped or repeated, its end is cut
off, or the last turn of the context is said again. Responses that language models fill in, translate back and forth, or
write can be put beside them as further pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from polytask.papers.poe.panel import LABELS
from polytask.task import MISSING


class Exchange(NamedTuple):
    """A response and what was said before.

    Attributes:
        context: the turns before it, as one text.
        last: the last of them.
        response: what a person answered.
        wrong: responses that could be mistaken for it, see `spoiled`.
    """

    context: str
    last: str
    response: str
    wrong: tuple[str, ...] = ()


class Pair(NamedTuple):
    """A context, a response, and the position in `LABELS` of what it is."""

    context: str
    response: str
    label: int


def spoiled(exchange: Exchange, random: np.random.Generator) -> Exchange:
    """The exchange with three wrong responses: its words shuffled; dropped, repeated or cut off; and the last turn again.

    What is too short to be spoiled so, as one word to shuffle, has its words repeated.
    """
    words = exchange.response.split()
    kept = random.random(len(words)) > 1 / 3
    start = int(random.integers(0, max(1, len(words) // 2)))
    again = words[start : start + max(2, len(words) // 3)]
    repeated = [*words[:start], *again, *again, *words[start + len(again) :]]
    dropped = [word for word, keep in zip(words, kept, strict=True) if keep]
    changed = [dropped, repeated, words[: max(1, len(words) // 2)]][int(random.integers(0, 3))]
    shuffled = [words[i] for i in random.permutation(len(words))]
    wrong = (repeated if not some or some == words else some for some in (shuffled, changed))
    return exchange._replace(wrong=(*map(" ".join, wrong), exchange.last))


def pairs(exchanges: Sequence[Exchange], others: Sequence[str], random: np.random.Generator) -> list[Pair]:
    """Three pairs for each exchange: its response, that of another exchange, and a wrong one.

    Args:
        exchanges: of one domain, at least two, each with wrong responses.
        others: responses of other domains, half of what strangers say; where there are none, strangers are of the same.
        random: what draws.
    """
    stranger, adversarial, original = range(len(LABELS))
    found = []
    for i, exchange in enumerate(exchanges):
        response = exchanges[(i + int(random.integers(1, len(exchanges)))) % len(exchanges)].response
        if others and random.random() < 0.5:
            response = others[int(random.integers(0, len(others)))]
        wrong = exchange.wrong[int(random.integers(0, len(exchange.wrong)))]
        found += [
            Pair(exchange.context, response, stranger),
            Pair(exchange.context, wrong, adversarial),
            Pair(exchange.context, exchange.response, original),
        ]
    return found


def pseudo_labels(probabilities: Tensor, least: float) -> Tensor:
    """A teacher's labels ``(N,)`` for pairs of unknown quality, missing where it is less sure than ``least``.

    Args:
        probabilities: the teacher's, ``(N, classes)``.
        least: the probability that a label has to have. The paper's own is not known here.
    """
    sure, labels = probabilities.max(1)
    return labels.where(sure >= least, MISSING)
