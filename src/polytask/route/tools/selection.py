"""What all selectors give, and how several are made one: by ranks, by scores, or modules first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from polytask.errors import InputError


@dataclass(frozen=True)
class Hit:
    """A document that was found: its id in the registry, and its score, of which more is better."""

    id: int
    score: float


@dataclass(frozen=True)
class Selection:
    """What a selector found.

    Attributes:
        hits: the best first.
        scored: how many documents were scored to find them.
    """

    hits: tuple[Hit, ...]
    scored: int

    @property
    def ids(self) -> list[int]:
        """The documents' ids, the best first."""
        return [hit.id for hit in self.hits]


class Selector(Protocol):
    """Finds the documents that fit a request."""

    def select(self, request: str, k: int, modules: Collection[str] | None = None) -> Selection:
        """At most ``k`` documents, of some modules alone where they are named."""
        ...


def best(ids: Sequence[int] | np.ndarray, scores: np.ndarray, k: int) -> tuple[Hit, ...]:
    """The ``k`` highest scores, each id once; equal scores in the order of ids."""
    ids = np.asarray(ids)
    if len(ids) > 8 * k + 64:  # each id may be there several times, and ties are settled among what remains
        cut = np.partition(scores, -(8 * k))[-(8 * k)]
        kept = np.flatnonzero(scores >= cut)
        if len(np.unique(ids[kept])) >= k:
            ids, scores = ids[kept], scores[kept]
    hits: dict[int, Hit] = {}
    for place in np.lexsort((ids, -scores)).tolist():
        hits.setdefault(int(ids[place]), Hit(int(ids[place]), float(scores[place])))
        if len(hits) == k:
            break
    return tuple(hits.values())


class Hybrid:
    """Several selectors as one.

    ``"rank"`` is weighted reciprocal rank fusion, ``sum_i w_i / (c + rank_i)`` (Cormack et al., *Reciprocal rank fusion
    outperforms Condorcet and individual rank learning methods*, SIGIR 2009). ``"score"`` adds the selectors' scores, each
    brought to 0 .. 1 among its own hits. A document that a selector did not find gets nothing from it.

    Args:
        selectors: by name.
        weights: by name, not negative; all equal by default. `fit_weights` finds better ones from feedback.
        by: ``"rank"`` or ``"score"``.
        depth: how many hits each selector is asked for, or ``k`` where that is more.
        constant: ``c`` of the fusion of ranks.
    """

    def __init__(
        self,
        selectors: Mapping[str, Selector],
        weights: Mapping[str, float] | None = None,
        *,
        by: Literal["rank", "score"] = "rank",
        depth: int = 100,
        constant: float = 60.0,
    ) -> None:
        self.selectors, self.by, self.depth, self.constant = dict(selectors), by, depth, constant
        self.weights = dict(weights or dict.fromkeys(selectors, 1.0))
        if not selectors or set(self.weights) != set(selectors) or any(w < 0 for w in self.weights.values()):
            raise InputError(f"weights {self.weights} of the selectors {', '.join(selectors)}: expected one, >= 0, for each")

    def select(self, request: str, k: int, modules: Collection[str] | None = None) -> Selection:
        found = {name: one.select(request, max(k, self.depth), modules) for name, one in self.selectors.items()}
        return self.fused(found, k)

    def fused(self, found: Mapping[str, Selection], k: int) -> Selection:
        """What the selectors' own selections come to."""
        total: dict[int, float] = {}
        for name, selection in found.items():
            for hit, value in zip(selection.hits, self._values(selection), strict=True):
                total[hit.id] = total.get(hit.id, 0.0) + self.weights[name] * value
        hits = best(np.array([*total], dtype=np.int64), np.array([*total.values()]), k)
        return Selection(hits, sum(selection.scored for selection in found.values()))

    def _values(self, selection: Selection) -> list[float]:
        if self.by == "rank":
            return [1 / (self.constant + rank) for rank in range(1, len(selection.hits) + 1)]
        scores = [hit.score for hit in selection.hits]
        low, spread = min(scores, default=0.0), max(scores, default=0.0) - min(scores, default=0.0)
        return [(score - low) / spread if spread else 1.0 for score in scores]


class ModuleSelector(Protocol):
    """Finds the modules that fit a request."""

    def modules(self, request: str, count: int) -> list[str]:
        """The best modules, the best first."""
        ...

    def __len__(self) -> int:
        """How many modules there are, all of which are scored."""
        ...


class ModuleFirst:
    """The module strategy: modules first, then APIs inside them; ``sqrt(N)`` modules leave about ``2 sqrt(N)`` to score.

    Args:
        modules: chooses modules, such as `Centroids`.
        selector: chooses documents inside.
        count: how many modules are searched.
    """

    def __init__(self, modules: ModuleSelector, selector: Selector, count: int = 3) -> None:
        self.chooser, self.selector, self.count = modules, selector, count

    def select(self, request: str, k: int, modules: Collection[str] | None = None) -> Selection:
        chosen = self.chooser.modules(request, len(self.chooser) if modules else self.count)
        inside = [module for module in chosen if modules is None or module in modules][: self.count]
        found = self.selector.select(request, k, inside)
        return Selection(found.hits, found.scored + len(self.chooser))
