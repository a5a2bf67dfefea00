"""Feedback: what a request should have found improves the documents, and the weights of a hybrid selector."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from polytask.errors import InputError
from polytask.route.tools.registry import Registry
from polytask.route.tools.selection import Hybrid, Selection, Selector


def learn_from_failures(
    registry: Registry,
    selector: Selector,
    cases: Sequence[tuple[str, str, str]],
    *,
    k: int = 1,
    most: int = 20,
) -> int:
    """Add the wording of requests that failed to the documents that they should have found, as usage examples.

    Args:
        registry: where the documents get new versions.
        selector: what is improved; after this, an index of vectors wants `Embedding.refresh`.
        cases: request, and the name and module of the API that was right.
        k: a request fails where the right API is not among so many.
        most: examples that a document keeps; the oldest leave first.

    Returns:
        How many documents have a new version.
    """
    wanted: dict[tuple[str, str], list[str]] = {}
    for request, name, module in cases:
        one, _ = registry.find(name, module)
        if one not in selector.select(request, k).ids:
            wanted.setdefault((name, module), []).append(request)
            registry.record(one, request, right=False, detail=f"not among the first {k}")
    for (name, module), requests in wanted.items():
        _, document = registry.find(name, module)
        examples = tuple(dict.fromkeys([*document.examples, *requests]))[-most:]
        registry.update(document.but(examples=examples))
    return len(wanted)


def fit_weights(
    hybrid: Hybrid, cases: Sequence[tuple[str, int]], *, grid: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 2.0)
) -> float:
    """Give a hybrid selector the weights of highest mean reciprocal rank on some cases, and give that rank.

    Every combination of the grid's values is tried, by what the selectors found once; of equal ones the first is kept, and
    the weights that it has come first.

    Args:
        hybrid: its ``weights`` are changed.
        cases: requests, and the id of the document that is right.
        grid: the values to try for each selector.
    """
    if not cases:
        raise InputError("fit_weights: no cases, expected requests and the ids of what is right")
    found = [{name: one.select(request, hybrid.depth) for name, one in hybrid.selectors.items()} for request, _ in cases]
    names = list(hybrid.selectors)
    tried = [
        hybrid.weights,
        *(dict(zip(names, values, strict=True)) for values in itertools.product(grid, repeat=len(names))),
    ]
    scored = []
    for weights in tried:
        if any(weights.values()):
            hybrid.weights = dict(weights)
            ranks = [
                reciprocal_rank(hybrid.fused(each, hybrid.depth), gold) for each, (_, gold) in zip(found, cases, strict=True)
            ]
            scored.append((sum(ranks) / len(ranks), hybrid.weights))
    rank, hybrid.weights = max(scored, key=lambda pair: pair[0])
    return rank


def reciprocal_rank(selection: Selection, gold: int) -> float:
    """One over the rank of what is right, 0 where it was not found."""
    return 1 / (selection.ids.index(gold) + 1) if gold in selection.ids else 0.0
