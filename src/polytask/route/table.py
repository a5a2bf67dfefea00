"""The loss table: what every expert loses on every prompt, kept in a file that grows."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import numpy as np

from polytask.errors import InputError, MissingExtra, quoted
from polytask.route.expert import Example, Expert

T = TypeVar("T")

FORMAT = 1


class Failure(NamedTuple):
    """A cell without a loss, and why."""

    expert: str
    prompt: str
    reason: str


class Cell(NamedTuple):
    """What came of one example at one expert."""

    loss: float | None
    failure: str


class LossTable:
    """Experts x prompts, each cell a loss or the reason why there is none, in a file of SQLite.

    To label prompts is what a router costs: each takes a pass of each expert. So cells are written as they come. A run that
    is killed goes on where it was, an expert that is added later fills its own column alone, and a prompt that comes twice
    with the same reference is computed once. An expert is known by its name.

    Args:
        path: the file, made when there is none; ``":memory:"``, the default, keeps nothing.

    >>> from polytask.route import scoring
    >>> table = LossTable()
    >>> length = Expert("length", scoring(lambda prompt: float(len(prompt))))
    >>> examples = [Example("ab"), Example("abc")]
    >>> table.fill(examples, [length])
    >>> table.losses(examples, ["length"]).tolist()
    [[2.0], [3.0]]
    """

    def __init__(self, path: Path | str = ":memory:") -> None:
        self.path = str(path)
        try:
            if self.path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._rows = sqlite3.connect(self.path, timeout=10)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{self.path}: cannot be opened as a loss table ({error})") from error
        try:
            with self._writing():
                self._prepare()
        except InputError:
            self._rows.close()
            raise

    def _prepare(self) -> None:
        version = self._rows.execute("PRAGMA user_version").fetchone()[0]
        names = {name for (name,) in self._rows.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version > FORMAT:
            raise InputError(f"{self.path}: a loss table of format {version}, expected up to {FORMAT}: upgrade polytask")
        if names and not {"prompts", "cells"} <= names:
            raise InputError(f"{self.path}: a database of other things, expected a loss table or no file")
        self._rows.execute("CREATE TABLE IF NOT EXISTS prompts (key TEXT PRIMARY KEY, prompt TEXT, reference TEXT)")
        self._rows.execute(
            "CREATE TABLE IF NOT EXISTS cells (expert TEXT, key TEXT, loss REAL, failure TEXT, PRIMARY KEY (expert, key))"
        )
        self._rows.execute(f"PRAGMA user_version = {FORMAT}")

    def fill(
        self,
        examples: Sequence[Example],
        experts: Sequence[Expert],
        *,
        threads: int = 1,
        again: bool = False,
        progress: Callable[[int, int, str], None] = lambda done, total, expert: None,
    ) -> None:
        """Compute the cells that are not there yet.

        An expert that fails at a batch is asked for its examples one by one, so that a failure is one example's; it is
        recorded, and the others go on.

        Args:
            examples: prompts and references.
            experts: each with its ``losses``.
            threads: how many batches of an expert are computed at once, 1 by default; more for endpoints.
            again: compute the cells again that failed before.
            progress: called with the cells that are done, all that were missing, and the expert's name.
        """
        names = [expert.name for expert in experts]
        for expert in experts:
            if expert.losses is None or names.count(expert.name) > 1:
                raise InputError(f"expert {expert.name!r}: expected a name of its own, and losses")
        by_key = {_key(example): example for example in examples}
        with self._writing():
            rows = [(key, example.prompt, _reference(example)) for key, example in by_key.items()]
            self._rows.executemany("INSERT OR IGNORE INTO prompts VALUES (?, ?, ?)", rows)
        missing = {expert.name: [key for key in by_key if key not in self._done(expert.name, again)] for expert in experts}
        total, done = sum(map(len, missing.values())), 0
        with ThreadPoolExecutor(threads) as pool:
            for expert in experts:
                for keys in _pieces(missing[expert.name], expert.batch * threads):
                    pieces = _pieces([by_key[key] for key in keys], expert.batch)
                    cells = [cell for piece in pool.map(partial(_cells, expert), pieces) for cell in piece]
                    with self._writing():
                        self._rows.executemany(
                            "INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?)",
                            [(expert.name, key, *cell) for key, cell in zip(keys, cells, strict=True)],
                        )
                    done += len(keys)
                    progress(done, total, expert.name)

    def _done(self, expert: str, again: bool) -> set[str]:
        wanted = "AND loss IS NOT NULL" if again else ""
        return {key for (key,) in self._rows.execute(f"SELECT key FROM cells WHERE expert = ? {wanted}", (expert,))}

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of the experts that have a column, by name."""
        with self._reading():
            return tuple(name for (name,) in self._rows.execute("SELECT DISTINCT expert FROM cells ORDER BY expert"))

    @property
    def examples(self) -> list[Example]:
        """All examples, in the order in which they came."""
        with self._reading():
            found = self._rows.execute("SELECT prompt, reference FROM prompts ORDER BY rowid").fetchall()
        return [Example(prompt, json.loads(reference)) for prompt, reference in found]

    def losses(self, examples: Sequence[Example] | None = None, experts: Sequence[str] | None = None) -> np.ndarray:
        """``(N, K)`` float64, NaN where an expert failed or was not asked; by default of all examples and experts."""
        examples = self.examples if examples is None else examples
        experts = self.experts if experts is None else experts
        found = np.full((len(examples), len(experts)), np.nan)
        keys = [_key(example) for example in examples]
        for column, expert in enumerate(experts):
            with self._reading():
                known = dict(self._rows.execute("SELECT key, loss FROM cells WHERE expert = ?", (expert,)))
            if not known:
                raise InputError(f"{self.path}: no column of the expert {expert!r}, expected one of {list(self.experts)}")
            found[:, column] = [np.nan if (loss := known.get(key)) is None else loss for key in keys]
        return found

    @property
    def failures(self) -> list[Failure]:
        """The cells without a loss, by expert."""
        query = "SELECT expert, prompt, failure FROM cells JOIN prompts USING (key) WHERE loss IS NULL ORDER BY expert"
        with self._reading():
            return [Failure(*row) for row in self._rows.execute(query)]

    def forget(self, expert: str) -> None:
        """Drop an expert's column, as when another model has its name."""
        with self._writing():
            self._rows.execute("DELETE FROM cells WHERE expert = ?", (expert,))

    def close(self) -> None:
        """Close the file."""
        self._rows.close()

    def __enter__(self) -> LossTable:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: cannot be read as a loss table ({error})") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it is in the file, or none."""
        try:
            with self._rows:
                yield
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: cannot be written as a loss table ({error})") from error


def _pieces(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _key(example: Example) -> str:
    return hashlib.sha256(f"{example.prompt}\0{_reference(example)}".encode()).hexdigest()


def _reference(example: Example) -> str:
    try:
        return json.dumps(example.reference, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"reference {quoted(example.reference)}: expected a value that JSON has") from error


def _cells(expert: Expert, examples: Sequence[Example]) -> list[Cell]:
    assert expert.losses is not None
    try:
        losses = [float(loss) for loss in expert.losses(examples)]
        if len(losses) != len(examples):
            raise InputError(f"{len(losses)} losses for {len(examples)} examples")
    except MissingExtra:
        raise
    except Exception as error:
        if len(examples) > 1:
            return [cell for example in examples for cell in _cells(expert, [example])]
        return [Cell(None, f"{type(error).__name__}: {error}".splitlines()[0][:500])]
    return [Cell(loss, "") if np.isfinite(loss) else Cell(None, f"loss {loss}, expected a finite number") for loss in losses]
