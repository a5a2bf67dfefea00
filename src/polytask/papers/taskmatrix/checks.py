"""The claims, one check for each part of the platform. A seed draws the half of the requests that is kept for the test.

- **models**: which of 1,726 documents a request wants, by words (BM25), by meaning (MiniLM, frozen), by both (reciprocal
  ranks, weights chosen on the other half), and by meaning within the three best of 61 domains.
- **functions**: the same by words for 1,053 requests among 3,105 functions, with parts of the documents left out; a function
  that has the wanted one's name counts, since the catalogue has it several times.
- **abstention**: requests that no offered function fits, told by the best score among those offered; the threshold is the
  one of highest balanced accuracy on the other half.
- **calls**: real calls, read and checked; and each with one thing wrong, drawn by the seed.
- **feedback**: requests of the other half that failed become usage examples of the documents that they wanted.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from polytask.errors import InputError
from polytask.papers.taskmatrix.catalogues import Request, compositions, functions, models, registered, remembered
from polytask.route.tools import (
    Call,
    Centroids,
    Document,
    Embedding,
    Hybrid,
    Lexical,
    ModuleFirst,
    Selection,
    Selector,
    VectorIndex,
    bind,
    fit_weights,
    learn_from_failures,
    parse_call,
)

WIDTH = 384
MODULES = 3
TUNED = 300
"""Requests of the other half that a hybrid's weights are chosen on."""

WRONG = {"string": 3, "integer": "three", "number": "three", "boolean": "yes", "array": 3, "object": 3}
"""A value of another type than each."""


def measure(seed: int, data: Path) -> dict[str, float]:
    """All checks; shares in percent."""
    return {
        **_models(data, seed),
        **_functions(data, seed),
        **_calls(data, seed),
    }


# Models


def _models(data: Path, seed: int) -> dict[str, float]:
    documents, requests = models(data)
    train, test = halves(requests, seed)
    embed = remembered([*(text for one in documents for text in one.texts()), *(request.text for request in requests)])
    domains = [document.module for document in documents]
    found: dict[str, float] = {"models quarter": len(documents) / 4}
    with tempfile.TemporaryDirectory() as folder:
        registry = registered(documents)
        embedding = Embedding(registry, VectorIndex(folder, WIDTH), embed, probe=None)
        embedding.refresh()
        lexical = Lexical(registry, budget=None)
        hybrid = Hybrid({"lexical": lexical, "embedding": embedding})
        fit_weights(hybrid, [(request.text, request.gold + 1) for request in train[:TUNED]])
        arms: dict[str, Selector] = {
            "lexical": lexical,
            "embedding": embedding,
            "hybrid": hybrid,
            "modules": ModuleFirst(Centroids(embedding), embedding, MODULES),
        }
        for name, arm in arms.items():
            selections = [arm.select(request.text, 10) for request in test]
            found |= {f"models {name} {what}": value for what, value in scores(selections, test).items()}
            firsts = [domains[one.ids[0] - 1] if one.ids else "" for one in selections]
            right = [first == domains[request.gold] for first, request in zip(firsts, test, strict=True)]
            found[f"models {name} domain"] = 100 * float(np.mean(right))
        found["models random recall@10"] = 1000 / len(documents)
        cases = [(request.text, documents[request.gold].name, documents[request.gold].module) for request in train]
        for name in ("lexical", "hybrid"):
            found[f"feedback {name} before"] = found[f"models {name} recall@5"]
        learn_from_failures(registry, lexical, cases, k=1)
        embedding.refresh()
        wanted = [registry.find(documents[request.gold].name, documents[request.gold].module)[0] for request in test]
        for name, arm in (("lexical", lexical), ("hybrid", hybrid)):
            hits = [one in arm.select(request.text, 5).ids for one, request in zip(wanted, test, strict=True)]
            found[f"feedback {name} after"] = 100 * float(np.mean(hits))
    return found


# Functions


def _functions(data: Path, seed: int) -> dict[str, float]:
    documents, requests = functions(data)
    _, test = halves([request for request in requests if request.split == "live_multiple"], seed)
    found: dict[str, float] = {}
    names = [document.name for document in documents]
    whole: Lexical | None = None
    for name, strip in STRIPPED.items():
        whole = Lexical(registered([strip(document) for document in documents]), UNNAMED, budget=None)
        ranks = [_rank_by_name(whole.select(request.text, 60).ids, names, request.gold) for request in test]
        for k in (1, 5, 10):
            found[f"functions {name} recall@{k}"] = 100 * float(np.mean([rank <= k for rank in ranks]))
    assert whole is not None
    picked = [_offered(whole, request)[0] for request in test]
    right = [one == request.gold for one, request in zip(picked, test, strict=True)]
    return found | {"functions offered": 100 * float(np.mean(right))} | _abstention(whole, requests, seed)


UNNAMED = {"module": 0.0}
"""These modules only keep apart what has one name: their numbers are no words of the documents."""

STRIPPED: dict[str, Callable[[Document], Document]] = {
    "name": lambda document: Document(document.name, module=document.module),
    "description": lambda document: document.but(parameters=(), returns=None),
    "parameters": lambda document: document,
}
"""Documents with names alone, with descriptions too, and with parameters too."""


def _rank_by_name(ids: Sequence[int], names: Sequence[str], gold: int) -> int:
    """The rank of the first document of the wanted name, where each name counts once."""
    ranked = list(dict.fromkeys(names[one - 1] for one in ids))
    return ranked.index(names[gold]) + 1 if names[gold] in ranked else len(names)


def _abstention(lexical: Lexical, requests: Sequence[Request], seed: int) -> dict[str, float]:
    asked = [r for r in requests if r.split in ("live_simple", "irrelevance", "live_irrelevance") and r.offered]
    train, test = halves(asked, seed)
    score = {id(request): _offered(lexical, request)[1] for request in asked}

    def both(part: Sequence[Request]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([request.gold >= 0 for request in part]), np.array([score[id(request)] for request in part])

    fits, values = both(train)
    thresholds = np.unique(values)
    balanced = [((values[fits] >= t).mean() + (values[~fits] < t).mean()) / 2 for t in thresholds]
    threshold = thresholds[int(np.argmax(balanced))]
    fits, values = both(test)
    return {
        "abstention area": 100 * float(roc_auc_score(fits, values)),
        "abstention bar": 75.0,
        "abstention balanced": 50 * float((values[fits] >= threshold).mean() + (values[~fits] < threshold).mean()),
    }


def _offered(lexical: Lexical, request: Request) -> tuple[int, float]:
    """The best of the functions that were offered and its score; the first and 0 where none has a word of the request."""
    modules: Collection[str] = [f"catalogue {row}" for row in request.offered]
    hits = lexical.select(request.text, 1, modules).hits
    return (hits[0].id - 1, hits[0].score) if hits else (request.offered[0], 0.0)


# Calls


def _calls(data: Path, seed: int) -> dict[str, float]:
    documents, texts = compositions(data)
    rng = random.Random(seed)
    accepted = refused = corrupted = 0
    typed = 0
    for text in texts:
        call = parse_call(text)
        document = documents[call.function]
        given = {p.name: value for p, value in zip(document.parameters, call.positional, strict=False)} | dict(call.named)
        known = {parameter.name for parameter in document.parameters}
        required = {parameter.name for parameter in document.parameters if parameter.required}
        accepted += required <= set(given) <= known
        typed += _accepts(call, document)
        for wrong in _corruptions(call.function, given, document, rng):
            corrupted += 1
            refused += not _accepts(wrong, document)
    return {
        "calls accepted": 100 * accepted / len(texts),
        "calls of right types": 100 * typed / len(texts),
        "calls refused": 100 * refused / corrupted,
        "calls bar": 99.0,
    }


def _corruptions(name: str, given: dict[str, object], document: Document, rng: random.Random) -> list[Call]:
    """The call without a required parameter, with an unknown one, and with a value of another type, where there can be."""
    wrong = [Call(name, named={**given, "no_such_parameter": 1})]
    if needed := [parameter.name for parameter in document.parameters if parameter.required]:
        gone = rng.choice(needed)
        wrong.append(Call(name, named={key: value for key, value in given.items() if key != gone}))
    if typed := [p for p in document.parameters if p.name in given and p.type in WRONG]:
        one = rng.choice(typed)
        wrong.append(Call(name, named={**given, one.name: WRONG[one.type]}))
    return wrong


def _accepts(call: Call, document: Document) -> bool:
    try:
        bind(call, document)
    except InputError:
        return False
    return True


# What they share


def halves(requests: Sequence[Request], seed: int) -> tuple[list[Request], list[Request]]:
    """Two halves, drawn by the seed: one to learn from, one to test on."""
    order = random.Random(seed).sample(requests, len(requests))
    return order[: len(order) // 2], order[len(order) // 2 :]


def scores(selections: Sequence[Selection], requests: Sequence[Request]) -> dict[str, float]:
    """Recall among the first 1, 5 and 10 and the mean reciprocal rank, in percent, and how many documents were scored."""
    ranks = np.array([
        one.ids.index(request.gold + 1) + 1 if request.gold + 1 in one.ids else np.inf
        for one, request in zip(selections, requests, strict=True)
    ])  # fmt: skip
    found = {f"recall@{k}": 100 * float((ranks <= k).mean()) for k in (1, 5, 10)}
    scored = float(np.mean([one.scored for one in selections]))
    return found | {"rank": 100 * float((1 / ranks).mean()), "scored": scored}
