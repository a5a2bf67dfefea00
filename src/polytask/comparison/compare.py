"""The main job: which tasks help each other, and which method to use, with the evidence."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from polytask import __version__
from polytask.comparison.analysis import (
    Values,
    correct,
    cosine_findings,
    curves,
    decided,
    delta_findings,
    group_evidence,
    grouping_outcome,
    interval,
    summary,
    task_findings,
    transfer,
)
from polytask.comparison.grouping import group
from polytask.comparison.runner import Runner
from polytask.comparison.trial import Trial, step_seconds
from polytask.data.examples import DataSet
from polytask.data.table import Schema
from polytask.errors import InputError
from polytask.files import read_json, write_json
from polytask.method import Method, parse_methods

SCHEMA = 1
"""The version of the results' schema, which docs/compare.md describes."""

TUNING_SEED = 10_000
"""The seed of trials that only choose settings, so that no reported seed took part in a choice."""

DEFAULT_METHODS = ("hard+equal", "hard+uncertainty", "mmoe+equal", "mmoe+uncertainty")


@dataclass(frozen=True)
class Plan:
    """What a comparison does, settled before the first trial."""

    data: DataSet
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    steps: int
    learning_rates: tuple[float, ...]
    weight_trials: int
    transfer: bool
    equal_time: bool

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.data.tasks)

    @property
    def pairs(self) -> list[tuple[str, ...]]:
        return list(combinations(self.tasks, 2)) if self.transfer else []

    @property
    def trials(self) -> int:
        """About how many trials there are: what the progress bar counts to."""
        seeds, rates = len(self.seeds), len(self.learning_rates)
        arms = len(self.tasks) + len(self.methods)
        count = arms * (rates + seeds) + len(self.pairs) * seeds
        count += (self.weight_trials + seeds) if self.weight_trials else 0
        count += len(self.methods) * seeds if self.equal_time else 0
        return count + (seeds if isinstance(self.data.schema, Schema) else 0)


def compare(
    data: DataSet,
    methods: Sequence[str] = DEFAULT_METHODS,
    *,
    seeds: int = 5,
    steps: int | None = None,
    learning_rates: Sequence[float] | None = None,
    weight_trials: int = 8,
    transfer: bool | None = None,
    equal_time: bool = True,
    out: Path | str | None = None,
    workers: int | None = None,
    ray: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Train a model for each task alone and all tasks together in several ways, over paired seeds, and say what helped.

    Every arm gets the same steps, batch size, schedule and tuning: the same learning rates are tried once for each arm, on
    a seed of its own. What is chosen (learning rates, static weights, the best weights of a run) is what is best on
    validation data, at `polytask.measure.delta_m` where tasks are trained together. Figures are of test data.

    Args:
        data: the data set (`polytask.multidigits`, `polytask.load_table`, or your own `polytask.DataSet`).
        methods: names of methods (`polytask.method.Method.parse`); ``all``, ``all-sharing``, ``all-balancers`` too.
        seeds: how many paired seeds, at least 2.
        steps: optimizer steps of a trial; by default the data set's epochs.
        learning_rates: tried for each arm; by default the data set's, a third of it, and three times it.
        weight_trials: random static weights tried on validation data for the control "tuned weights"; 0 leaves it out.
        transfer: whether to train every pair of tasks; by default for at most 8 tasks.
        equal_time: whether to train methods with a slower step again, for as long as the plain sum takes.
        out: a folder for ``results.json``, ``report.html`` and finished trials; a killed comparison goes on from it.
        workers: processes, each with one thread; by default the number of cores.
        ray: the address of a Ray cluster to run trials on; ``local`` starts one on this machine.
        progress: called with the stage, the trials done, and about how many there are.

    Returns the results, JSON values as docs/compare.md describes them; `polytask.report` renders them.
    """
    plan = _plan(data, methods, seeds, steps, learning_rates, weight_trials, transfer, equal_time)
    folder = Path(out) if out is not None else None
    workers = workers or joblib.cpu_count()
    results = _Comparison(plan, folder, workers, ray, progress).results()
    if folder is not None:
        write_json(folder / "results.json", results)
        from polytask.report import write_report

        write_report(results, folder / "report.html")
    return results


def _plan(
    data: DataSet,
    methods: Sequence[str],
    seeds: int,
    steps: int | None,
    learning_rates: Sequence[float] | None,
    weight_trials: int,
    transfer: bool | None,
    equal_time: bool,
) -> Plan:
    if len(data.tasks) < 2:
        raise InputError(f"{data.name}: {len(data.tasks)} task, expected at least 2 to compare training together and apart")
    if seeds < 2:
        raise InputError(f"seeds is {seeds}, expected at least 2: an interval needs more than one value")
    batch_size = data.settings.get("batch_size", 64)
    if batch_size > len(data.train):
        raise InputError(f"{data.name}: batch size {batch_size} is larger than the {len(data.train)} training examples")
    lr = float(data.settings.get("lr", 1e-3))
    epochs = data.settings.get("epochs", 6)
    chosen = tuple(learning_rates) if learning_rates is not None else (lr / 3, lr, lr * 3)
    if not chosen or min(chosen) <= 0:
        raise InputError(f"learning rates {list(chosen)}, expected at least one, each > 0")
    if steps is not None and steps < 1:
        raise InputError(f"steps is {steps}, expected at least 1")
    pretrained = getattr(data.encoder(), "pretrained", None) is not None
    return Plan(
        data=data,
        methods=tuple(dict.fromkeys([Method(), *parse_methods(methods, pretrained)])),
        seeds=tuple(range(seeds)),
        steps=steps or max(1, round(epochs * (len(data.train) // batch_size))),
        learning_rates=chosen,
        weight_trials=weight_trials,
        transfer=transfer if transfer is not None else len(data.tasks) <= 8,
        equal_time=equal_time,
    )


class _Comparison:
    def __init__(
        self,
        plan: Plan,
        folder: Path | None,
        workers: int,
        ray: str | None,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.plan, self.folder = plan, folder
        self.stage, self.done, self.progress = "", 0, progress
        self.run = Runner(plan.data, folder, workers, ray, self._advance)

    def results(self) -> dict[str, Any]:
        plan, tasks = self.plan, self.plan.tasks
        step_times = self._step_times()

        self.stage = "choosing learning rates"
        single = {name: self._tuned(Trial(tasks=(name,), seed=TUNING_SEED, steps=plan.steps)) for name in tasks}
        self.run([trial for tried in single.values() for trial in tried])
        single_best = {name: self._best(tried) for name, tried in single.items()}
        shape = Trial(tasks, TUNING_SEED, steps=plan.steps, baseline=self._validation_baseline(single_best))
        arms = {m: self._tuned(replace(shape, sharing=m.sharing, balance=m.balance)) for m in plan.methods}
        self.run([trial for tried in arms.values() for trial in tried])
        arm_best = {method: self._best(tried) for method, tried in arms.items()}

        plain = arm_best[Method()]
        tuned = None
        if plan.weight_trials:
            self.stage = "tuning static weights"
            candidates = [replace(plain, weights=weights) for weights in self._random_weights()]
            self.run(candidates)
            tuned = self._best(candidates)

        self.stage = "training"
        alone = {name: self._seeds(trial) for name, trial in single_best.items()}
        joint = {method: self._seeds(trial) for method, trial in arm_best.items()}
        joint[Method()] = [replace(trial, cosines=True) for trial in joint[Method()]]
        pairs = {pair: self._seeds(replace(plain, tasks=pair)) for pair in plan.pairs}
        static = self._seeds(tuned) if tuned else []
        yardstick = self._seeds(Trial(tasks, 0, kind="yardstick")) if isinstance(plan.data.schema, Schema) else []
        slower = {}
        if plan.equal_time:
            for method, trial in arm_best.items():
                steps = round(plan.steps * step_times[Method()] / step_times[method])
                if steps < 0.95 * plan.steps:  # a step hardly slower than the plain sum's needs no second training
                    slower[method] = self._seeds(replace(trial, steps=max(1, steps)))
        everything = [*alone.values(), *joint.values(), *pairs.values(), *slower.values(), static, yardstick]
        self.run([trial for trials in everything for trial in trials])

        baseline = {name: self._values(trials)[name] for name, trials in alone.items()}
        moved = (
            transfer(plan.data.tasks, baseline, {(a, b): self._values(t) for (a, b), t in pairs.items()}) if pairs else None
        )
        grouping, grouped = self._grouping(moved, alone, pairs, plain)

        rows = [self._single_row(alone, baseline)]
        for method, trials in joint.items():
            row = self._row(method.name, "method", trials, baseline, step_times[method])
            if method in slower:
                row["equal_time"] = self._findings(self._values(slower[method]), baseline)
                row["equal_time"]["steps"] = slower[method][0].steps
            rows.append(row)
        if tuned:
            row = self._row("tuned weights", "control", static, baseline, step_times[Method()])
            row["weights"] = dict(tuned.weights or ())
            rows.append(row)
        if grouped is not None:
            rows.append(self._grouped_row(grouped, baseline))
        if yardstick:
            rows.append(self._row("gradient boosting", "yardstick", yardstick, baseline, None))
        self._correct(rows)
        for row in rows:
            if grouping is not None and row["name"] == "groups" and row["delta_m"] is not None:
                grouping["evidence"].insert(0, grouping_outcome(row["delta_m"]))
        return {
            "schema": SCHEMA,
            "polytask": __version__,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "data": self._data(),
            "budget": {
                "steps": plan.steps,
                "batch_size": plan.data.settings.get("batch_size", 64),
                "learning_rates": list(plan.learning_rates),
                "tuning_trials": len(plan.learning_rates),
                "weight_trials": plan.weight_trials,
                "seeds": list(plan.seeds),
                "threads": 1,
            },
            "machine": machine(),
            "methods": rows,
            "transfer": moved,
            "cosines": cosine_findings(tasks, Method().name, [self.run.results[trial] for trial in joint[Method()]]),
            "grouping": grouping,
            "summary": summary(rows, grouping, moved),
        }

    # Trials

    def _tuned(self, trial: Trial) -> list[Trial]:
        return [replace(trial, lr=lr) for lr in self.plan.learning_rates]

    def _best(self, trials: Sequence[Trial]) -> Trial:
        return max(trials, key=lambda trial: self.run.results[trial]["score"])

    def _validation_baseline(self, single: dict[str, Trial]) -> tuple[tuple[str, float], ...] | None:
        """What joint training is measured against while it is tuned; ``None`` where delta_m over it is not defined."""
        values = {name: self.run.results[trial]["validation"][name] for name, trial in single.items()}
        return tuple(values.items()) if all(value is not None and value > 0 for value in values.values()) else None

    def _seeds(self, trial: Trial) -> list[Trial]:
        return [replace(trial, seed=seed) for seed in self.plan.seeds]

    def _random_weights(self) -> list[tuple[tuple[str, float], ...]]:
        """Static weights, log-uniform between 1/8 and 8 and scaled to sum to K; the first are equal."""
        rng = np.random.default_rng(TUNING_SEED)
        tasks = self.plan.tasks
        drawn = np.exp(rng.uniform(-math.log(8), math.log(8), size=(self.plan.weight_trials, len(tasks))))
        drawn[0] = 1
        drawn *= len(tasks) / drawn.sum(1, keepdims=True)
        return [tuple(zip(tasks, map(float, row), strict=True)) for row in drawn]

    def _step_times(self) -> dict[Method, float]:
        """Each method's seconds for a step, measured one after the other while nothing else runs; kept like a trial."""
        methods = self.plan.methods
        kept = self.folder / "trials" / f"steps-{self.run.fingerprint[:20]}.json" if self.folder else None
        known: dict[str, float] = read_json(kept) if kept and kept.exists() else {}
        self.stage = "timing a step of each method"
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for method in methods:
            if method.name not in known:
                trial = Trial(self.plan.tasks, TUNING_SEED, sharing=method.sharing, balance=method.balance)
                known[method.name] = step_seconds(trial, self.plan.data)
        torch.set_num_threads(threads)
        if kept:
            write_json(kept, known)
        return {method: known[method.name] for method in methods}

    def _advance(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.stage, self.done, max(self.plan.trials, self.done))

    # Findings

    def _values(self, trials: Sequence[Trial]) -> dict[str, list[float]]:
        values = {}
        for name in trials[0].tasks:
            metric = self.plan.data.task(name).metric
            values[name] = [self.run.results[trial]["test"][name][metric] for trial in trials]
            if any(value is None for value in values[name]):
                raise InputError(
                    f"task {name!r}: {metric} is not defined on the test data (its labels may be all alike), "
                    "choose another main metric or more data"
                )
        return values

    def _findings(self, values: Values, baseline: Values | None) -> dict[str, Any]:
        delta = delta_findings(values, baseline, self.plan.data.tasks) if baseline is not None else None
        return {"tasks": task_findings(values, baseline), "delta_m": delta}

    def _row(
        self, name: str, role: str, trials: Sequence[Trial], baseline: Values | None, step_time: float | None
    ) -> dict[str, Any]:
        runs = [self.run.results[trial] for trial in trials]
        fitted = trials[0].kind == "fit"
        return {
            "name": name,
            "role": role,
            "steps": trials[0].steps if fitted else None,
            "learning_rate": trials[0].lr if fitted else None,
            "weights": None,
            "parameters": runs[0]["parameters"],
            "step_milliseconds": None if step_time is None else 1000 * step_time,
            "seconds": _without_values(interval([run["seconds"] for run in runs])),
            "peak_memory_mb": runs[0]["memory_mb"],
            **self._findings(self._values(trials), baseline),
            "equal_time": None,
            "curves": curves(trials[0].tasks, runs) if fitted else {},
        }

    def _single_row(self, alone: dict[str, list[Trial]], baseline: Values) -> dict[str, Any]:
        row = self._row("single-task", "baseline", next(iter(alone.values())), None, None)
        row["tasks"] = task_findings(baseline, None)
        return {
            **row,
            **self._summed(alone),
            "curves": {
                name: curves([name], [self.run.results[trial] for trial in trials])[name] for name, trials in alone.items()
            },
        }

    def _summed(self, parts: dict[Any, list[Trial]]) -> dict[str, Any]:
        """What models trained apart cost together; the peak is the largest's, as they need not train at once."""
        runs = [[self.run.results[trial] for trial in trials] for trials in parts.values()]
        seeds = range(len(self.plan.seeds))
        return {
            "learning_rate": {task: trials[0].lr for trials in parts.values() for task in trials[0].tasks},
            "parameters": sum(part[0]["parameters"] for part in runs),
            "seconds": _without_values(interval([sum(part[s]["seconds"] for part in runs) for s in seeds])),
            "peak_memory_mb": max(part[0]["memory_mb"] for part in runs),
            "steps": sum(trials[0].steps for trials in parts.values()),
        }

    def _grouping(
        self,
        moved: dict[str, Any] | None,
        alone: dict[str, list[Trial]],
        pairs: dict[tuple[str, ...], list[Trial]],
        plain: Trial,
    ) -> tuple[dict[str, Any] | None, dict[tuple[str, ...], list[Trial]] | None]:
        """The suggested grouping, and the trials that trained it (``None`` when it is all together or all apart)."""
        if moved is None:
            return None, None
        tasks = self.plan.tasks
        groups = [tuple(tasks[i] for i in members) for members in group(decided(moved))]
        grouping = {"groups": [list(g) for g in groups], "evidence": group_evidence(moved)}
        if len(groups) in (1, len(tasks)):
            return grouping, None
        trained = {}
        for members in groups:
            known = alone[members[0]] if len(members) == 1 else pairs.get(members)
            trained[members] = known or self._seeds(replace(plain, tasks=members))
        self.stage = "training the suggested groups"
        self.run([trial for trials in trained.values() for trial in trials])
        return grouping, trained

    def _grouped_row(self, trained: dict[tuple[str, ...], list[Trial]], baseline: Values) -> dict[str, Any]:
        values: dict[str, list[float]] = {}
        for trials in trained.values():
            values |= self._values(trials)
        row = self._row("groups", "control", next(iter(trained.values())), None, None)
        return {
            **row,
            **self._summed(trained),
            **self._findings({name: values[name] for name in self.plan.tasks}, baseline),
            "curves": {},
        }

    def _correct(self, rows: Sequence[dict[str, Any]]) -> None:
        """Correct p-values for the number of methods, for each task and for delta_m, at equal steps and at equal time."""
        compared = [row for row in rows if row["role"] != "baseline"]
        for view in (compared, [row["equal_time"] for row in compared if row["equal_time"]]):
            for task in self.plan.data.tasks:
                correct([part["tasks"][task.name]["difference"] for part in view], task.higher_is_better)
            correct([part["delta_m"] for part in view])

    def _data(self) -> dict[str, Any]:
        data = self.plan.data
        return {
            "name": data.name,
            "sizes": {split: len(getattr(data, split)) for split in ("train", "validation", "test")},
            "provenance": dict(data.provenance),
            "warnings": list(data.provenance.get("warnings", [])),
            "tasks": [
                {
                    "name": task.name,
                    "kind": task.kind,
                    "metric": task.metric,
                    "higher_is_better": task.higher_is_better,
                    "task": task.to_dict(),
                }
                for task in data.tasks
            ],
        }


def machine() -> str:
    """This machine in a line: processor, cores, and the versions that results depend on."""
    return f"{os.cpu_count()} x {processor()}, Python {platform.python_version()}, torch {torch.__version__}"


def processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (" ".join(line.split(":", 1)[1].split()) for line in lines if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:  # not Linux: the platform's own name has to do
        return platform.processor() or platform.machine()


def _without_values(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("mean", "low", "high")}
