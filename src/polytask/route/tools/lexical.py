"""Selection by words: BM25 by SQLite's FTS5, within a budget that frequent words cannot break."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from polytask.route.tools.document import words_of
from polytask.route.tools.registry import COLUMNS, Registry
from polytask.route.tools.selection import Hit, Selection


class Lexical:
    """BM25 (Robertson and Zaragoza, 2009) over a registry's documents, as FTS5 computes it with k1 1.2 and b 0.75.

    A document needs to have one of the request's words, which are compared by their stems (Porter's). BM25 takes time in
    proportion to how many documents have a word, so that frequent words, which hardly matter, cost most. Within a budget
    the rarest words are taken as long as their documents together are no more than it, and the others left out. Where even
    the rarest is in more documents, those with all the words are taken, the shortest documents first: BM25's own
    order where each word occurs once.

    As scored counts each of the taken words in each document that has it: what the time goes into.

    Args:
        registry: the documents.
        weights: how much a word counts in each of `COLUMNS`; 1 where it is not said.
        budget: documents that may be scored; ``None`` scores all that have one of the words.
    """

    def __init__(self, registry: Registry, weights: Mapping[str, float] | None = None, budget: int | None = 4000) -> None:
        self.registry, self.budget = registry, budget
        self.weights = {**dict.fromkeys(COLUMNS, 1.0), **(weights or {})}

    def select(self, request: str, k: int, modules: Collection[str] | None = None) -> Selection:
        words = list(dict.fromkeys(re.findall(r"\w+", words_of(request).lower())))
        inside, values = _inside(modules)
        counts = {word: count for word in words if (count := self._count(word))}
        if not counts:
            return Selection((), 0)
        taken = self._affordable(counts)
        if not taken:
            return self._of_frequent(list(counts), k, inside, values)
        weights = ", ".join(f"{self.weights[column]:g}" for column in COLUMNS)
        query = f"""select rowid, -bm25(words, {weights}) from words where words match ?{inside}
                    order by 2 desc, rowid limit ?"""
        rows = self.registry.ask(query, (" OR ".join(f'"{word}"' for word in taken), *values, k))
        return Selection(tuple(Hit(one, score) for one, score in rows), sum(counts[word] for word in taken))

    def _count(self, word: str) -> int:
        """How many documents have a word, counted to one more than the budget."""
        query = "select count(*) from (select 1 from words where words match ? limit ?)"
        most = -1 if self.budget is None else self.budget + 1
        return int(self.registry.ask(query, (f'"{word}"', most))[0][0])

    def _affordable(self, counts: Mapping[str, int]) -> list[str]:
        if self.budget is None:
            return list(counts)
        taken: list[str] = []
        left = self.budget
        for word in sorted(counts, key=lambda word: counts[word]):
            left -= counts[word]
            if left < 0:
                break
            taken.append(word)
        return taken

    def _of_frequent(self, words: list[str], k: int, inside: str, values: list[Any]) -> Selection:
        """Documents with all of some frequent words, or with as many of the longest of them as any document has."""
        for count in range(len(words), 0, -1):
            some = sorted(words, key=len, reverse=True)[:count]
            query = f"""select rowid, -length(body) from (
                            select rowid from words where words match ?{inside} limit {self.budget})
                        join documents on documents.id = rowid order by 2 desc, rowid limit ?"""
            rows = self.registry.ask(query, (" AND ".join(f'"{word}"' for word in some), *values, k))
            if rows:
                return Selection(tuple(Hit(one, float(score)) for one, score in rows), self.budget or 0)
        return Selection((), 0)


def _inside(modules: Collection[str] | None) -> tuple[str, list[Any]]:
    """The end of a condition: of some modules alone."""
    if modules is None:
        return "", []
    marks = ", ".join("?" * len(modules))
    return f" and rowid in (select id from documents where live and module in ({marks}))", [*modules]
