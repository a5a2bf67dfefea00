"""Evaluates configurations: each network once, within a budget, over cores, and with a journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polytask.errors import InputError
from polytask.journal import append_line, open_journal
from polytask.shrink.search.found import Direction, Found, Trial, signed
from polytask.shrink.search.space import Configuration, Rows, Space
from polytask.workers import join_ray, unordered

Evaluate: TypeAlias = Callable[[Configuration], Mapping[str, float]]

FORMAT = "polytask sub-networks 1"
"""What a journal says it is, with the version of its layout."""


class Evaluator:
    """Evaluates rows of a space, and counts the networks among them.

    A network that is asked for again costs nothing. One whose evaluation raises, or whose objectives are missing or not
    finite, is recorded as failed: it counts, and is not tried again.

    Args:
        space: what the rows are rows of.
        evaluate: from a configuration to numbers by name, among them the objectives. Several processes need one that can be
            sent to them; what is large it should load itself.
        objectives: by name, whether ``"lower"`` or ``"higher"`` is better.
        budget: how many networks to evaluate at most.
        path: the journal, a file of JSON lines, one for each evaluation as soon as it is done. What it holds is not
            evaluated again, whatever strategy asks for it, but counts as if it were. It does not know what ``evaluate``
            does: for another network or other data, give another path. One process at a time may use it.
        workers: how many processes; with 1 everything happens in this one.
        ray: the address of a Ray cluster that does the work instead: ``auto``, ``local``, or ``host:port``.

    Attributes:
        trials: what was asked for, each network once; their order depends on neither workers nor interruptions.
    """

    def __init__(
        self,
        space: Space,
        evaluate: Evaluate,
        objectives: Mapping[str, Direction],
        budget: int,
        path: Path | str | None = None,
        workers: int = 1,
        ray: str | None = None,
    ) -> None:
        if not objectives:
            raise InputError("no objectives, expected at least one")
        for name, direction in objectives.items():
            if direction not in ("lower", "higher"):
                raise InputError(f"objective {name!r}: {direction!r}, expected 'lower' or 'higher'")
        if budget < 1 or workers < 1:
            raise InputError(f"budget {budget} and {workers} workers, expected at least 1 of each")
        self.space, self.evaluate, self.objectives = space, evaluate, dict(objectives)
        self.limit = min(budget, space.size)
        self.path, self.workers, self.ray = None if path is None else Path(path), workers, ray
        self.trials: list[Trial] = []
        self._values: dict[bytes, NDArray[np.float64]] = {}
        self._recorded = {} if self.path is None else self._read(self.path)
        if ray is not None:
            join_ray(ray)

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """``(N, M)``: the objectives of each row, lower is better; NaN where it failed, or was not evaluated any more."""
        keys = self.space.keys(rows)
        waiting = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._values}
        asked = list(waiting)[: self.limit - len(self.trials)]
        todo = [key for key in asked if key not in self._recorded]
        for number, trial in self._evaluated([self.space.configuration(waiting[key]) for key in todo]):
            if self.path is not None:
                append_line(self.path, _line(trial))
            self._recorded[todo[number]] = trial
        nothing = np.full(len(self.objectives), np.nan)
        for key in asked:
            trial = self._recorded.pop(key)
            self.trials.append(trial)
            self._values[key] = nothing if trial.error else signed([trial.values], self.objectives)[0]
        return np.array([self._values.get(key, nothing) for key in keys]).reshape(-1, len(self.objectives))

    @property
    def spent(self) -> bool:
        """Whether no network can be evaluated any more."""
        return len(self.trials) >= self.limit

    @property
    def found(self) -> Found:
        """What was evaluated so far."""
        return Found(self.objectives, list(self.trials))

    def _evaluated(self, configurations: Sequence[Configuration]) -> Iterator[tuple[int, Trial]]:
        arguments = [(number, each, self.evaluate, tuple(self.objectives)) for number, each in enumerate(configurations)]
        if self.workers == 1 and self.ray is None:
            yield from (_trial(*each) for each in arguments)
        elif arguments:
            yield from unordered(_trial, arguments, self.workers, self.ray is not None)

    def _read(self, path: Path) -> dict[bytes, Trial]:
        about = {"search": FORMAT, "objectives": self.objectives, "space": self.space.about}

        def check(first: Mapping[str, Any]) -> None:
            if first.get("objectives") != self.objectives:
                raise InputError(f"{path}: of a search for {first.get('objectives')}, here for {self.objectives}")
            if first.get("space") != as_json(self.space.about):
                raise InputError(f"{path}: the journal of another space, expected one of the same genes and options")

        found = {}
        for number, line in enumerate(open_journal(path, about, check), 2):
            try:
                row = self.space.row(line["configuration"])
                trial = Trial(self.space.configuration(row), line.get("values", {}), line.get("error", ""))
                assert trial.error or all(math.isfinite(trial.values[name]) for name in self.objectives)
            except (KeyError, TypeError, AttributeError, AssertionError, InputError) as error:
                raise InputError(f"{path}: line {number}: expected a configuration with its values or an error") from error
            found[self.space.keys(row[None])[0]] = trial
        return found


def as_json(value: Any) -> Any:
    """A value as it comes back from JSON, where a tuple is a list."""
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, list | tuple) else value


def _line(trial: Trial) -> dict[str, Any]:
    outcome = {"error": trial.error} if trial.error else {"values": trial.values}
    return {"configuration": trial.configuration, **outcome}


def _trial(number: int, configuration: Configuration, evaluate: Evaluate, objectives: tuple[str, ...]) -> tuple[int, Trial]:
    """The trial of a configuration, which ``evaluate`` may change as it likes: it is given a copy."""
    try:
        values = {str(name): float(value) for name, value in evaluate(dict(configuration)).items()}
    except Exception as error:  # whatever it is, the search goes on
        return number, Trial(configuration, {}, f"{type(error).__name__}: {error}".strip().splitlines()[0])
    for name in objectives:
        if not math.isfinite(values.get(name, math.nan)):
            why = f"{name} is {values[name]}" if name in values else f"no {name} among {sorted(values)}"
            return number, Trial(configuration, {}, why)
    return number, Trial(configuration, {name: value for name, value in values.items() if math.isfinite(value)})
