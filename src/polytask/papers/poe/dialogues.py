"""Human dialogues of five domains to learn from, six sets of rated responses to be judged by, and their sentence features.

Domains: DailyDialog, Topical-Chat, WOZ (restaurants), ConvAI2 (personas) and EmpatheticDialogues. Of the last two there are
only contexts of the GRADE ratings with the reply that a person gave: for each seed half of these contexts is for learning,
and the responses that were rated are those to the other half. Dialogues that contain a rated context are left out.

Rated sets: GRADE's three (Huang et al., EMNLP 2020), USR's two (Mehri and Eskenazi, ACL 2020; Overall), and the turns of FED
(Mehri and Eskenazi, SIGDIAL 2020; Overall).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polytask.data.examples import Examples
from polytask.errors import InputError
from polytask.papers._minilm import embedded, read_gzip
from polytask.papers.poe.pairs import Exchange, Pair, pairs, spoiled

FOLDER = "dialogue_human_ratings"
FILES = tuple(
    f"{FOLDER}/{name}.jsonl.gz" for name in ("domain_dialogues", "grade_references", "grade_turns", "usr_turns", "fed")
)
FROM_DIALOGUES = ("dailydialog", "topicalchat", "woz")
FROM_REFERENCES = {"convai2": "convai2", "empathetic": "empatheticdialogues"}
DOMAINS = (*FROM_DIALOGUES, *FROM_REFERENCES)
POOL, DRAWN = 400, 300
"""Exchanges of each domain of dialogues whose features are kept, and how many of them a seed draws."""


class Rated(NamedTuple):
    """A rated response.

    Attributes:
        context: the last two turns before it.
        response: what a system said, or a person.
        system: who.
        ratings: of the raters, in the set's own unit.
    """

    context: str
    response: str
    system: str
    ratings: tuple[float, ...]


RATED: dict[str, str | None] = {
    "GRADE ConvAI2": "convai2",
    "GRADE DailyDialog": "dailydialog",
    "GRADE Empathetic": "empathetic",
    "USR TopicalChat": "topicalchat",
    "USR PersonaChat": "convai2",
    "FED": None,
}
"""The rated sets, and which domain's expert knows each; PersonaChat is what ConvAI2 is made of."""


@dataclass(frozen=True)
class Dialogues:
    """What a seed learns from, and what it is judged by.

    Attributes:
        train, validation: the exchanges of each domain.
        rated: the items of each rated set.
        vectors: sentence embeddings, by text.
        seed: of what is drawn.
    """

    train: Mapping[str, Sequence[Exchange]]
    validation: Mapping[str, Sequence[Exchange]]
    rated: Mapping[str, Sequence[Rated]]
    vectors: Mapping[str, Tensor]
    seed: int

    def examples(
        self, part: Mapping[str, Sequence[Exchange]], domains: Sequence[str], among: Sequence[str] | None = None
    ) -> dict[str, Examples]:
        """Labelled pairs of each of ``domains``, by domain; strangers are from ``among``, by default from ``domains``."""
        found = {}
        for domain in domains:
            others = [e.response for other in (among or domains) if other != domain for e in self.train[other]]
            random = np.random.default_rng([self.seed, DOMAINS.index(domain)])
            made = pairs(part[domain], others, random)
            found[domain] = Examples(self.features(made), {domain: torch.tensor([pair.label for pair in made])})
        return found

    def features(self, rows: Sequence[Pair] | Sequence[Rated]) -> Tensor:
        """What a panel reads of pairs, ``(N, 4 * 384)``."""
        contexts, responses = (
            torch.stack([self.vectors[text] for text in texts]) for texts in zip(*[r[:2] for r in rows], strict=True)
        )
        return features(contexts, responses)


def features(contexts: Tensor, responses: Tensor) -> Tensor:
    """``[c, r, |c - r|, c * r]`` of sentence embeddings ``(N, width)``, as ``(N, 4 width)``.

    Embeddings have length 1; they are brought to a mean square of 1 first.
    """
    c, r = (vectors * vectors.shape[1] ** 0.5 for vectors in (contexts, responses))
    return torch.cat([c, r, (c - r).abs(), c * r], 1)


def load(folder: Path, seed: int) -> Dialogues:
    """The dialogues of a seed; their embeddings are computed once, which takes minutes, and kept."""
    rated, exchanges = _rated(folder), {}
    seen = {_key(item.context) for items in rated.values() for item in items}
    for domain in FROM_DIALOGUES:
        exchanges[domain] = list(_of_dialogues(folder, domain, seen))
    for domain, name in FROM_REFERENCES.items():
        exchanges[domain] = list(_of_references(folder, name))
    texts = _texts(exchanges, rated)
    vectors = dict(zip(texts, embedded(texts), strict=True))
    train, validation, learned = {}, {}, set()
    for domain, pool in exchanges.items():
        order = np.random.default_rng([seed, DOMAINS.index(domain)]).permutation(len(pool))
        drawn = [pool[i] for i in order[: DRAWN if domain in FROM_DIALOGUES else len(pool) // 2]]
        cut = len(drawn) * 5 // 6
        train[domain], validation[domain] = drawn[:cut], drawn[cut:]
        learned |= {_key(exchange.context) for exchange in drawn}
    unseen = {name: [item for item in items if _key(item.context) not in learned] for name, items in rated.items()}
    return Dialogues(train, validation, unseen, vectors, seed)


# What is read


def _of_dialogues(folder: Path, domain: str, seen: set[str]) -> Iterator[Exchange]:
    """One exchange of each of `POOL` dialogues that have no rated context."""
    dialogues = [row["turns"] for row in _lines(folder / FILES[0]) if row["domain"] == domain]
    random = np.random.default_rng(0)
    left = POOL
    for i in random.permutation(len(dialogues)):
        turns = dialogues[i]
        known = any(_key(" ".join(turns[k : k + 2])) in seen for k in range(len(turns)))
        if len(turns) < 3 or known:
            continue
        if left == 0:
            return
        left -= 1
        at = int(random.integers(2, len(turns)))
        yield spoiled(Exchange(" ".join(turns[at - 2 : at]), turns[at - 1], turns[at]), random)


def _of_references(folder: Path, name: str) -> Iterator[Exchange]:
    random = np.random.default_rng(0)
    for row in _lines(folder / FILES[1]):
        if row["domain"] == name:
            yield spoiled(Exchange(" ".join(row["context"][-2:]), row["context"][-1], row["reference"]), random)


def _rated(folder: Path) -> dict[str, list[Rated]]:
    """The items of every rated set."""
    found: dict[str, list[Rated]] = {name: [] for name in RATED}
    grade = {"convai2": "GRADE ConvAI2", "dailydialog_EVAL": "GRADE DailyDialog", "empatheticdialogues": "GRADE Empathetic"}
    usr = {"topicalchat": "USR TopicalChat", "personachat": "USR PersonaChat"}
    for row in _lines(folder / FILES[2]):
        found[grade[row["domain"]]].append(_item(row, row["context"], row["response"], row["scores"]))
    for row in _lines(folder / FILES[3]):
        found[usr[row["domain"]]].append(_item(row, row["context"], row["response"], row["ratings"]["Overall"]))
    for row in _lines(folder / FILES[4]):
        if row["level"] == "turn":
            turns = [turn.split(": ", 1)[-1] for turn in (*row["context"], row["response"])]
            found["FED"].append(_item(row, turns[:-1], turns[-1], row["ratings"]["Overall"]))
    return found


def _item(row: Mapping[str, Any], context: Sequence[str], response: str, ratings: Sequence[Any]) -> Rated:
    """Ratings that are not numbers, as ``N/A``, are left out."""
    numbers = tuple(float(rating) for rating in ratings if not isinstance(rating, str))
    return Rated(" ".join(context[-2:]), response, row["system"], numbers)


def _texts(exchanges: Mapping[str, Sequence[Exchange]], rated: Mapping[str, Sequence[Rated]]) -> list[str]:
    """Every text whose embedding can be asked for."""
    every = [(e.context, e.response, *e.wrong) for pool in exchanges.values() for e in pool]
    every += [item[:2] for items in rated.values() for item in items]
    return list(dict.fromkeys(text for some in every for text in some))


def _key(text: str) -> str:
    """A text without what another tokenizer would change."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in read_gzip(path).splitlines()]
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: a line is not JSON ({error})") from error
