"""Seven kinds of text, and a library of nine experts for them: what the claims route between.

The 500 passages of each domain are divided anew for each seed: 200 train experts, 150 the router, 50 validate, 100 test. No
expert was trained on what the router learns from. There is an expert of order 5 for each domain, one of order 3 for all
domains, and one of order 1.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polytask.papers._minilm import embedded
from polytask.papers.tryage.characters import CharacterModel
from polytask.route import Example, Expert, LossTable

FILES = ("tryage_domains/passages.jsonl.gz",)

SIZES = {"experts": 200, "router": 150, "validation": 50, "test": 100}

CARDS = {
    "banking": "A model for questions of customers to their bank about cards, transfers, top-ups and fees.",
    "biomedical": "A model for abstracts of biomedical research on cancer, genes and cells.",
    "drama": "A model for Shakespeare's plays, dialogues in verse.",
    "math": "A model for grade-school math word problems and their worked answers.",
    "news": "A model for short news on business, sports, science and the world.",
    "politics": "A model for inaugural addresses and political speeches.",
    "reviews": "A model for customers' reviews of electronic products.",
    "general": "A general model for texts of all kinds.",
    "tiny": "A very small general model that knows letters only.",
}
"""One line on each expert, of the kind that a list of models has; written before anything was measured."""

DOMAINS = tuple(CARDS)[:7]

Passage = tuple[str, str]
"""Domain and text."""


def passages(data: Path) -> list[Passage]:
    """All passages, in the file's order."""
    with gzip.open(data / FILES[0], "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["domain"], row["text"]) for row in rows]


@dataclass(frozen=True)
class Part:
    """Some prompts, all domains in turn.

    Attributes:
        texts: the prompts.
        domains: their domains' places in `DOMAINS`, ``(N,)``; no router sees them.
        features: of the frozen sentence encoder, ``(N, 384)``.
        losses: bits per character of each expert, ``(N, K)``.
    """

    texts: list[str]
    domains: np.ndarray
    features: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Library:
    """The experts of a seed and what they lose.

    Attributes:
        experts: in the order of `CARDS`; ``size`` is the number of stored n-grams.
        models: the same models.
        texts: what the experts were trained on.
        features: of ``texts``, ``(N, 384)``.
        parts: ``router``, ``validation`` and ``test``.
        cards: the sentence encoder's features of `CARDS`.
    """

    experts: tuple[Expert, ...]
    models: tuple[CharacterModel, ...]
    texts: list[str]
    features: np.ndarray
    parts: Mapping[str, Part]
    cards: np.ndarray


def library(data: Path, seed: int, sizes: Mapping[str, int] = SIZES) -> Library:
    """Divide the passages, train the experts, and fill the loss table."""
    every = passages(data)
    vectors = embedded([text for _, text in every]).numpy()
    draws = np.random.default_rng(seed)
    places: dict[str, list[int]] = {part: [] for part in sizes}
    for domain in DOMAINS:
        own = draws.permutation([i for i, (name, _) in enumerate(every) if name == domain])
        for part, some in zip(sizes, np.split(own, np.cumsum(list(sizes.values()))), strict=False):
            places[part].extend(some.tolist())
    training = [every[i] for i in places["experts"]]
    models = trained(training)
    experts = tuple(
        Expert(name, model.losses, {"size": float(model.size)}, CARDS[name], batch=5000) for name, model in models.items()
    )
    examples = {part: [Example(every[i][1]) for i in places[part]] for part in list(sizes)[1:]}
    table = LossTable()
    table.fill([example for part in examples.values() for example in part], experts)
    names = [expert.name for expert in experts]
    parts = {
        part: Part(
            [example.prompt for example in some],
            np.array([DOMAINS.index(every[i][0]) for i in places[part]]),
            vectors[places[part]],
            table.losses(some, names),
        )
        for part, some in examples.items()
    }
    cards = embedded(list(CARDS.values())).numpy()
    texts = [text for _, text in training]
    return Library(experts, tuple(models.values()), texts, vectors[places["experts"]], parts, cards)


def trained(training: Sequence[Passage]) -> dict[str, CharacterModel]:
    """The nine experts."""
    texts = [text for _, text in training]
    found = {domain: CharacterModel(5).fit([text for name, text in training if name == domain]) for domain in DOMAINS}
    return found | {"general": CharacterModel(3).fit(texts), "tiny": CharacterModel(1).fit(texts)}
