"""A space of configurations: genes with options, of which some are used only where others have certain values."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polytask.errors import InputError, quoted, suggest

Configuration: TypeAlias = dict[str, Any]
"""The value of each gene by name; ``None`` for a gene that is not used."""

Rows: TypeAlias = NDArray[np.int64]
"""``(N, G)`` configurations: for each gene the place of its value among its options; -1 for one that is not used."""

DRAWS = 20
"""So often configurations that are known may be drawn; then the space is counted out, if it can be."""

COUNTABLE = 1_000_000
"""Combinations that are still counted out."""


class Space:
    """Configurations of a network: by name, the options of each gene, and when it is used.

    Two configurations that differ only in genes that are not used are the same network: they have the same canonical row,
    the same features and the same key.

    Args:
        genes: by name the options of each gene: values that JSON has, all different.
        when: for genes that are not always used, by name the genes that decide and the values that they must have, all of
            them at once. A gene that is not used itself lets none be used that it decides on.
        implied: genes that features leave out, such as a depth, since the blocks that are used tell it.

    >>> space = Space(
    ...     {"depth": [1, 2], "kernel1": [3, 5, 7], "kernel2": [3, 5, 7]},
    ...     when={"kernel2": {"depth": [2]}},
    ...     implied=["depth"],
    ... )
    >>> space.size
    12
    >>> row = space.row({"depth": 1, "kernel1": 5, "kernel2": 7})
    >>> row.tolist(), space.configuration(row)
    ([0, 1, -1], {'depth': 1, 'kernel1': 5, 'kernel2': None})
    >>> space.features(row[None]).tolist()
    [[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]]
    """

    def __init__(
        self,
        genes: Mapping[str, Iterable[Any]],
        when: Mapping[str, Mapping[str, Collection[Any]]] | None = None,
        implied: Collection[str] = (),
    ) -> None:
        if not genes:
            raise InputError("nothing to search, expected at least one gene")
        self.genes = {name: tuple(options) for name, options in genes.items()}
        self.when = {name: {by: tuple(values) for by, values in given.items()} for name, given in (when or {}).items()}
        self.implied = tuple(implied)
        self._places = {name: _places(name, options) for name, options in self.genes.items()}
        for name in (*self.when, *(by for given in self.when.values() for by in given), *self.implied):
            if name not in self.genes:
                raise InputError(f"unknown gene {name!r}: {suggest(name, self.genes)}")
        self.names = tuple(self.genes)
        self.sizes = np.array([len(options) for options in self.genes.values()])
        self._rounds = self._conditions()

    @property
    def about(self) -> dict[str, Any]:
        """The space as JSON has it: the same for spaces that have the same networks."""
        return {"genes": {name: list(options) for name, options in self.genes.items()}, "when": self.when}

    @cached_property
    def size(self) -> int:
        """How many different networks there are; at least, where more than a million combinations of genes that decide on
        others would have to be counted, no more than this."""
        return math.prod(self._count(part) for part in self._parts())

    def sample(self, count: int, random: np.random.Generator) -> Rows:
        """``(count, G)``, every gene by itself and each option as likely; genes that are not used have a value too."""
        places: Rows = (random.random((count, len(self.sizes))) * self.sizes).astype(np.int64)
        return places

    def distinct(self, count: int, known: Collection[bytes], random: np.random.Generator) -> Rows:
        """At most ``count`` sampled rows of different networks whose keys are not ``known``; fewer only if there are no
        more, or if they are too rare to be found in a space too large to be counted out."""
        found: dict[bytes, Any] = {}

        def take(rows: Rows) -> bool:
            for key, row in zip(self.keys(rows), rows, strict=True):
                if len(found) < count and key not in known:
                    found.setdefault(key, row)
            return len(found) == count

        if not any(take(self.sample(count, random)) for _ in range(DRAWS)) and math.prod(self.sizes.tolist()) <= COUNTABLE:
            every = np.stack(np.unravel_index(np.arange(math.prod(self.sizes.tolist())), self.sizes.tolist()), 1)
            take(random.permutation(every))
        return np.array(list(found.values()), dtype=np.int64).reshape(-1, len(self.sizes))

    def used(self, rows: Rows) -> NDArray[np.bool_]:
        """``(N, G)``: which genes are used."""
        used = np.ones(rows.shape, dtype=bool)
        for genes, by, table in self._rounds:
            used[:, genes] &= used[:, by] & table[np.arange(len(genes)), rows[:, by]]
        return used

    def canonical(self, rows: Rows) -> Rows:
        """``rows`` with -1 for the genes that are not used."""
        return np.where(self.used(rows), rows, -1)

    def filled(self, rows: Rows, random: np.random.Generator) -> Rows:
        """``rows`` with a value drawn for each -1, the same networks."""
        return np.where(rows < 0, self.sample(len(rows), random), rows)

    def keys(self, rows: Rows) -> list[bytes]:
        """For each row a value that is the same for the same network."""
        places = np.ascontiguousarray(self.canonical(rows), dtype=np.int16)
        keys: list[bytes] = places.view(f"V{2 * len(self.sizes)}")[:, 0].tolist()
        return keys

    def features(self, rows: Rows) -> NDArray[np.float64]:
        """``(N, F)``: for each gene, but the implied ones, a 1 at its option; only zeros for a gene that is not used."""
        ones: NDArray[np.bool_] = self.canonical(rows)[:, self._feature_genes] == self._feature_options
        return ones.astype(np.float64)

    def configuration(self, row: Rows) -> Configuration:
        """The values of one row ``(G,)``; ``None`` for genes that are not used."""
        places = self.canonical(row[None])[0].tolist()
        pairs = zip(self.genes.items(), places, strict=True)
        return {name: None if place < 0 else options[place] for (name, options), place in pairs}

    def row(self, configuration: Mapping[str, Any]) -> Rows:
        """``(G,)``, canonical, of a configuration; only genes that are not used may be absent or ``None``."""
        for name in configuration:
            if name not in self.genes:
                raise InputError(f"unknown gene {name!r}: {suggest(name, self.genes)}")
        places = []
        for name, known in self._places.items():
            value = configuration.get(name)
            place = known.get(_text(value), None if value is not None else -1)
            if place is None:
                options = quoted(list(self.genes[name]))
                raise InputError(f"gene {name!r} is {quoted(value)}, expected one of {options}")
            places.append(place)
        row: Rows = self.canonical(np.array([places]))[0]
        missing = self.used(row[None])[0] & (np.array(places) < 0)
        if missing.any():
            raise InputError(f"gene {self.names[int(missing.argmax())]!r} has no value, but is used")
        return row

    def restricted(self, genes: Mapping[str, Collection[Any]]) -> Space:
        """The part of the space where these genes have only these options."""
        for name, options in genes.items():
            if odd := [option for option in options if _text(option) not in self._places.get(name, {})]:
                raise InputError(f"gene {name!r} has no option {quoted(odd[0])}, expected some of its options")
        kept = {name: tuple(genes.get(name, options)) for name, options in self.genes.items()}
        when = {
            name: {by: [value for value in values if value in kept[by]] for by, values in given.items()}
            for name, given in self.when.items()
        }
        return Space(kept, when, self.implied)

    @cached_property
    def _feature_genes(self) -> Rows:
        genes = [i for i, name in enumerate(self.names) if name not in self.implied]
        return np.repeat(genes, self.sizes[genes])

    @cached_property
    def _feature_options(self) -> Rows:
        return np.concatenate([np.arange(self.sizes[gene]) for gene in dict.fromkeys(self._feature_genes.tolist())])

    def _conditions(self) -> list[tuple[Rows, Rows, NDArray[np.bool_]]]:
        """Rounds of conditions, each gene at most once in a round and after what it depends on: genes, what decides on them,
        and a table ``(conditions, options)`` of the values that let them be used."""
        place = {name: i for i, name in enumerate(self.names)}
        rounds: list[list[tuple[int, int, list[bool]]]] = []
        done: dict[str, int] = {name: 0 for name in self.names if not self.when.get(name)}
        widest = int(self.sizes.max())
        while waiting := [name for name in self.names if name not in done]:
            ready = [name for name in waiting if all(by in done for by in self.when[name])]
            if not ready:
                raise InputError(f"gene {waiting[0]!r} decides on itself, expected conditions without a circle")
            for name in ready:
                at = max(done[by] for by in self.when[name])
                for by, values in self.when[name].items():
                    for value in values:
                        if _text(value) not in self._places[by]:
                            raise InputError(f"gene {name!r}: when {by!r} is {quoted(value)}, which is none of its options")
                    allowed = [option in values for option in self.genes[by]]
                    rounds += [[] for _ in range(at + 1 - len(rounds))]
                    rounds[at].append((place[name], place[by], allowed + [False] * (widest - len(allowed))))
                    at += 1
                done[name] = at
        return [
            (np.array([c[0] for c in each]), np.array([c[1] for c in each]), np.array([c[2] for c in each]))
            for each in rounds
        ]

    def _parts(self) -> list[list[int]]:
        """Genes that conditions connect, directly or through others."""
        part = {name: {name} for name in self.names}
        for name, given in self.when.items():
            for by in given:
                joined = part[name] | part[by]
                part |= dict.fromkeys(joined, joined)
        place = {name: i for i, name in enumerate(self.names)}
        return [sorted(place[name] for name in names) for names in {id(names): names for names in part.values()}.values()]

    def _count(self, part: Sequence[int]) -> int:
        """How many different networks the genes of a part make."""
        deciding = {by for given in self.when.values() for by in given}
        switches = [gene for gene in part if self.names[gene] in deciding]
        rest = [gene for gene in part if self.names[gene] not in deciding]
        sizes = self.sizes.tolist()
        if math.prod(sizes[gene] for gene in switches) > COUNTABLE:
            return math.prod(sizes[gene] for gene in part)
        rows = np.zeros((math.prod(sizes[gene] for gene in switches), len(sizes)), dtype=np.int64)
        rows[:, switches] = list(itertools.product(*(range(sizes[gene]) for gene in switches)))
        _, first = np.unique(self.canonical(rows)[:, switches], axis=0, return_index=True)
        used = self.used(rows[first])[:, rest]
        return sum(math.prod(sizes[gene] for gene, here in zip(rest, row, strict=True) if here) for row in used.tolist())


def _places(name: str, options: tuple[Any, ...]) -> dict[str, int]:
    if not 1 <= len(options) < 2**15:
        raise InputError(f"gene {name!r} has {len(options)} options, expected from 1 to {2**15 - 1}")
    try:
        found = {_text(option): place for place, option in enumerate(options)}
    except (TypeError, ValueError) as error:
        raise InputError(f"gene {name!r}: options {quoted(list(options))}, expected values that JSON has") from error
    if len(found) < len(options) or "null" in found:
        raise InputError(f"gene {name!r}: options {quoted(list(options))}, expected different ones, none of them None")
    return found


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
