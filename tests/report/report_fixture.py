"""Made-up but plausible results of a comparison, of any size: what the report is tested and looked at with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FIVE = {"left": "accuracy", "right": "accuracy", "sum": "rmse", "parity": "auroc", "ink": "rmse"}
EIGHT = (
    "hard+equal",
    "hard+uncertainty",
    "hard+pcgrad",
    "hard+nash",
    "mmoe+equal",
    "mmoe+uncertainty",
    "ple+equal",
    "adapters+equal",
)
QUANTILE = {2: 12.71, 3: 4.30, 5: 2.78}


def make(
    tasks: dict[str, str] = FIVE,
    methods: tuple[str, ...] = EIGHT,
    seeds: int = 5,
    effect: float = 0.02,
    noise: float = 0.006,
    yardstick: bool = True,
    outlier: bool = False,
    extras: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Results of schema 1.

    Args:
        tasks: names and metrics; a metric that ends in ``mse`` or ``error`` is better when lower.
        methods: names; a control "tuned weights" and a baseline come on top.
        seeds: values for each task and method.
        effect: the spread of true relative effects over methods and tasks; 0 leaves everything undecided.
        noise: the relative spread over seeds.
        yardstick: whether there is gradient boosting.
        outlier: whether the last method fails badly.
        extras: whether transfer, cosines, grouping and equal time were measured.
        seed: of the numbers.
    """
    rng = np.random.default_rng(seed)
    higher = {name: not metric.endswith(("mse", "error")) for name, metric in tasks.items()}
    base = {name: rng.uniform(0.8, 0.95) if higher[name] else rng.choice([0.31, 4.2, 1250.0]) for name in tasks}
    alone = {name: base[name] * (1 + noise * rng.normal(size=seeds)) for name in tasks}
    names = [*methods, "tuned weights"] if len(methods) > 1 else list(methods)
    rows = [_row(rng, "single-task", "baseline", alone, None, higher, 1, len(tasks))]
    for i, name in enumerate(names):
        shift = effect * rng.normal(0.4, 1) - (0.6 if outlier and i == len(names) - 2 else 0)
        role = "control" if name == "tuned weights" else "method"
        slow = 1.0 if role == "control" or name == "hard+equal" else float(rng.uniform(0.98, 2.4))
        rows.append(_row(rng, name, role, _shifted(rng, alone, higher, shift, effect, noise), alone, higher, slow, 1))
        if role == "control":
            rows[-1]["weights"] = {task: float(rng.uniform(0.2, 3)) for task in tasks}
        if extras and slow > 1.06:
            timed = _row(rng, "", "", _shifted(rng, alone, higher, shift - 0.004, effect, noise), alone, higher, 1, 1)
            rows[-1]["equal_time"] = {"steps": round(300 / slow), "tasks": timed["tasks"], "delta_m": timed["delta_m"]}
    _correct(rows, higher)
    if yardstick:
        trees = _row(
            rng, "gradient boosting", "yardstick", _shifted(rng, alone, higher, 0.0, 0.03, 0.001), None, higher, 1, 1
        )
        rows.append(trees | dict.fromkeys(("steps", "learning_rate", "parameters", "step_milliseconds", "peak_memory_mb")))
        rows[-1]["curves"] = {}
    order = sorted(rows[1 : len(names) + 1], key=lambda row: -row["delta_m"]["mean"])
    transfer = _transfer(rng, list(tasks), effect) if extras and len(tasks) > 1 else None
    return {
        "schema": 1,
        "polytask": "0.1.0",
        "created": "2026-11-25T02:20:00Z",
        "data": {
            "name": "multidigits",
            "sizes": {"train": 6000, "validation": 2000, "test": 4000},
            "provenance": {"source": "scikit-learn digits", "sha256": "0f3a" * 16, "split": {"by": "image", "seed": 0}},
            "warnings": ["column 'parity' follows from the label of 'sum'"] if extras else [],
            "tasks": [
                {
                    "name": name,
                    "kind": "classification" if metric in ("accuracy", "auroc") else "regression",
                    "metric": metric,
                    "higher_is_better": higher[name],
                    "task": {"kind": "classification", "name": name},
                }
                for name, metric in tasks.items()
            ],
        },
        "budget": {
            "steps": 300,
            "batch_size": 128,
            "learning_rates": [0.001, 0.003, 0.01],
            "tuning_trials": 3,
            "weight_trials": 8,
            "seeds": list(range(seeds)),
            "threads": 1,
        },
        "machine": "2 x AMD EPYC 7B13, Python 3.11.2, torch 2.13.0",
        "methods": rows,
        "transfer": transfer,
        "cosines": _cosines(rng, list(tasks)) if extras and len(tasks) > 1 else None,
        "grouping": None if transfer is None else _grouping(list(tasks)),
        "summary": [
            f"{order[0]['name']} changes the metrics by {100 * order[0]['delta_m']['mean']:+.1f} % on average over the "
            "tasks against one model for each task.",
            "Training in pairs helped left (by right and sum) and hurt parity (by ink).",
            "Train left, right and sum together; parity apart: this grouping was trained and measured, not only predicted.",
        ],
    }


def _shifted(
    rng: np.random.Generator,
    alone: dict[str, np.ndarray],
    higher: dict[str, bool],
    shift: float,
    effect: float,
    noise: float,
) -> dict[str, np.ndarray]:
    moved = {}
    for name, values in alone.items():
        gain = shift + effect * rng.normal() * 0.6 + noise * rng.normal(size=len(values)) * 0.7
        moved[name] = values * (1 + gain if higher[name] else 1 - gain)
    return moved


def _interval(values: np.ndarray) -> dict[str, float]:
    mean = float(np.mean(values))
    width = QUANTILE[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return {"mean": mean, "low": mean - width, "high": mean + width}


def _tested(values: np.ndarray) -> dict[str, Any]:
    found = _interval(values)
    width = found["high"] - found["mean"]
    return {**found, "p": float(min(1, np.exp(-3 * abs(found["mean"]) / (width + 1e-12))))}


def _correct(rows: list[dict[str, Any]], higher: dict[str, bool]) -> None:
    for row in rows[1:]:
        for part in (row, row["equal_time"] or {"tasks": {}, "delta_m": None}):
            found = [(f["difference"], 1 if higher[name] else -1) for name, f in part["tasks"].items()]
            for finding, sign in [*found, (part["delta_m"], 1)]:
                if finding is not None:
                    finding["p_corrected"] = min(1.0, finding["p"] * 1.5)
                    good = sign * finding["mean"] > 0
                    sure = finding["p_corrected"] <= 0.05
                    finding["verdict"] = ("better" if good else "worse") if sure else "undecided"


def _row(
    rng: np.random.Generator,
    name: str,
    role: str,
    values: dict[str, np.ndarray],
    alone: dict[str, np.ndarray] | None,
    higher: dict[str, bool],
    slow: float,
    models: int,
) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for task, own in values.items():
        difference = None if alone is None else _tested(own - alone[task])
        tasks[task] = {"values": own.tolist(), **_interval(own), "difference": difference}
    delta = None
    if alone is not None:
        gains = [(own / alone[t] - 1) * (1 if higher[t] else -1) for t, own in values.items()]
        deltas = np.mean(gains, axis=0)
        delta = {"values": deltas.tolist(), **_tested(deltas)}
    step = 4.1 * slow
    seconds = 0.3 * step * models * (1 + 0.03 * rng.normal(size=len(next(iter(values.values())))))
    curves = {}
    for task, own in values.items():
        steps = np.arange(30, 301, 30)
        start = own.mean() * (0.6 if higher[task] else 2.0)
        mean = (
            own.mean()
            + (start - own.mean()) * np.exp(-steps / rng.uniform(50, 90))
            + own.mean() * 0.002 * rng.normal(size=10)
        )
        band = own.mean() * 0.01 * (1 + np.exp(-steps / 60))
        curves[task] = {
            "step": steps.tolist(),
            "seconds": (steps * step / 1000).tolist(),
            "mean": mean.tolist(),
            "low": (mean - band).tolist(),
            "high": (mean + band).tolist(),
        }
    return {
        "name": name,
        "role": role,
        "steps": 300 * models,
        "learning_rate": dict.fromkeys(values, 0.003) if role == "baseline" else 0.003,
        "weights": None,
        "parameters": int(35_000 * (1 + slow) * models),
        "step_milliseconds": None if role == "baseline" else step,
        "seconds": _interval(seconds),
        "peak_memory_mb": float(12 + 9 * slow),
        "tasks": tasks,
        "delta_m": delta,
        "equal_time": None,
        "curves": curves,
    }


def _transfer(rng: np.random.Generator, names: list[str], effect: float) -> dict[str, Any]:
    count = len(names)
    gain = rng.normal(0, max(effect, 1e-3), size=(count, count))
    width = np.full_like(gain, 0.012)

    def table(value: Any) -> list[list[Any]]:
        return [[None if i == j else value(i, j) for j in range(count)] for i in range(count)]

    def verdict(i: int, j: int) -> str:
        return "undecided" if abs(gain[i, j]) < width[i, j] else "better" if gain[i, j] > 0 else "worse"

    return {
        "tasks": names,
        "gain": table(lambda i, j: float(gain[i, j])),
        "low": table(lambda i, j: float(gain[i, j] - width[i, j])),
        "high": table(lambda i, j: float(gain[i, j] + width[i, j])),
        "p_corrected": table(lambda i, j: 0.01 if verdict(i, j) != "undecided" else 0.4),
        "verdict": table(verdict),
    }


def _cosines(rng: np.random.Generator, names: list[str]) -> dict[str, Any]:
    count, steps = len(names), list(range(30, 301, 30))
    mean = np.eye(count)
    pairs = []
    for j in range(count):
        for i in range(j):
            level = rng.normal(0.08, 0.2)
            series = level * (0.5 + np.linspace(0.5, 0, 10)) + 0.02 * rng.normal(size=10)
            mean[i, j] = mean[j, i] = series.mean()
            ends = {"mean": series.tolist(), "low": (series - 0.04).tolist(), "high": (series + 0.04).tolist()}
            pairs.append({"tasks": [names[i], names[j]], **ends})
    return {
        "tasks": names,
        "method": "hard+equal",
        "mean": mean.tolist(),
        "over_time": {"step": steps, "pairs": pairs},
        "conflicting_share": 0.4,
    }


def _grouping(names: list[str]) -> dict[str, Any]:
    groups = [names[: len(names) // 2 + 1], *([name] for name in names[len(names) // 2 + 1 :])]
    evidence = [
        f"{a} gains 2.1 % (95 % interval +0.9 % to +3.3 %) when trained with {b}."
        for a in names
        for b in names[:2]
        if a != b
    ]
    return {"groups": groups, "evidence": evidence}


LONG = {f"customer_lifetime_value_over_the_next_{12 * i}_months" if i % 3 == 0 else f"task_{i}": "rmse" for i in range(12)}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one": {"tasks": {"a": "accuracy", "b": "rmse"}, "methods": ("hard+equal",), "yardstick": False},
    "many": {
        "tasks": LONG,
        "methods": ("hard+equal", *(f"sharing{i}+a_balancer_with_a_long_name_{i}" for i in range(13))),
        "outlier": True,
    },
    "undecided": {"effect": 0.0, "noise": 0.02},
    "two_seeds": {"seeds": 2, "tasks": {"a": "accuracy", "b": "rmse"}, "methods": EIGHT[:3]},
    "bare": {"extras": False, "yardstick": False, "methods": EIGHT[:3]},
}
"""Sizes and extremes worth looking at."""


def write(folder: Path) -> None:
    """Write the report of each case into ``folder``."""
    from polytask.report import picture, write_report

    for name, settings in CASES.items():
        results = make(**settings)
        write_report(results, folder / f"{name}.html")
        (folder / f"{name}.json").write_text(json.dumps(results))
        picture(results, folder / f"{name}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
