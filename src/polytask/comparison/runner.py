"""Runs trials over cores or machines, and keeps every finished one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from polytask.comparison.trial import Trial, arrays, fingerprint, from_arrays, run_trial
from polytask.data.examples import DataSet
from polytask.errors import InputError, PolytaskError
from polytask.files import read_json, write_json
from polytask.workers import join_ray, unordered


class Runner:
    """Results of trials on one data set, computed once.

    Args:
        data: the data.
        folder: where results are kept (``trials/*.json``); ``None`` keeps them in memory only.
        workers: processes, each with one thread; 1 runs in this process.
        ray: the address of a Ray cluster (``auto``, ``local``, or ``host:port``), whose cores then do the work.
        advance: called as each trial is done.
    """

    def __init__(
        self,
        data: DataSet,
        folder: Path | None = None,
        workers: int = 1,
        ray: str | None = None,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self.data, self.folder, self.workers, self.ray, self.advance = data, folder, workers, ray, advance
        self.fingerprint = fingerprint(data)
        self.results: dict[Trial, dict[str, Any]] = {}
        if ray is not None:
            join_ray(ray)

    def __call__(self, trials: Sequence[Trial]) -> None:
        """Have the results of all ``trials`` in ``results``; those that are kept already are read, not run."""
        waiting = []
        for trial in dict.fromkeys(trials):
            if trial not in self.results and not self._read(trial):
                waiting.append(trial)
            else:
                self.advance()
        for trial, result in self._run(waiting):
            self.results[trial] = result
            if self.folder is not None:
                write_json(self._path(trial), {"trial": asdict(trial), **result})
            self.advance()

    def _path(self, trial: Trial) -> Path:
        assert self.folder is not None
        return self.folder / "trials" / f"{trial.key(self.fingerprint)}.json"

    def _read(self, trial: Trial) -> bool:
        if self.folder is None or not self._path(trial).exists():
            return False
        self.results[trial] = read_json(self._path(trial))
        return True

    def _run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, dict[str, Any]]]:
        if self.workers == 1 and self.ray is None:
            for trial in trials:
                yield trial, _outcome(run_trial(trial, self.data))
            return
        parts = [arrays(examples) for examples in (self.data.train, self.data.validation, self.data.test)]
        empty = from_arrays({name: array[:1].copy() for name, array in parts[0].items()})
        train = replace(empty, redraw=self.data.train.redraw)
        shell = replace(self.data, train=train, validation=empty, test=empty)
        # Longest first, so that no worker is left with a long trial at the end.
        trials = sorted(trials, key=lambda trial: -trial.steps * len(trial.tasks))
        arguments = [(trial, shell, parts) for trial in trials]
        for trial, result in unordered(_in_worker, arguments, self.workers, self.ray is not None):
            yield trial, _outcome(result)


def _in_worker(trial: Trial, shell: DataSet, parts: Sequence[dict[str, Any]]) -> tuple[Trial, dict[str, Any]]:
    torch.set_num_threads(1)
    train, validation, test = (from_arrays(part) for part in parts)
    train = replace(train, redraw=shell.train.redraw)
    data = object.__new__(DataSet)  # the tasks of the shell are fitted already: its checks would cost a pass over the data
    data.__dict__.update({**shell.__dict__, "train": train, "validation": validation, "test": test})
    try:
        return trial, run_trial(trial, data)
    except PolytaskError as error:
        return trial, {"error": f"{trial}: {error}"}


def _outcome(result: dict[str, Any]) -> dict[str, Any]:
    if "error" in result:
        raise InputError(result["error"])
    return result
