"""From trials to findings: means, intervals, what is better or worse, which task helps which, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from polytask.errors import InputError
from polytask.measure import delta_m
from polytask.statistics import holm, paired_p_value, t_interval
from polytask.task import Task

Values = Mapping[str, Sequence[float]]
"""The main metric by task, a value for each seed, seeds in one order everywhere."""


def interval(values: Sequence[float]) -> dict[str, Any]:
    """``values`` with their mean and 95 % t-interval, as in the results' schema."""
    found = t_interval(values)
    return {"values": list(values), "mean": found.mean, "low": found.low, "high": found.high}


def task_findings(values: Values, baseline: Values | None) -> dict[str, Any]:
    """For each task the metric's interval and, against ``baseline``, the paired difference with its p-value."""
    findings = {}
    for name, own in values.items():
        finding = interval(own)
        finding["difference"] = None
        if baseline is not None:
            differences = [a - b for a, b in zip(own, baseline[name], strict=True)]
            difference = interval(differences)
            del difference["values"]
            finding["difference"] = {**difference, "p": paired_p_value(differences)}
        findings[name] = finding
    return findings


def delta_findings(values: Values, baseline: Values, tasks: Sequence[Task]) -> dict[str, Any] | None:
    """`delta_m` for each seed against the single-task models of that seed; ``None`` where it is not defined."""
    direction = {task.name: task.higher_is_better for task in tasks}
    seeds = len(next(iter(values.values())))
    try:
        deltas = [
            delta_m({n: v[s] for n, v in values.items()}, {n: baseline[n][s] for n in values}, direction)
            for s in range(seeds)
        ]
    except InputError:
        return None
    return {**interval(deltas), "p": paired_p_value(deltas)}


def correct(findings: Sequence[dict[str, Any] | None], better_above: bool = True) -> None:
    """Write ``p_corrected`` (Holm, over all ``findings``) and ``verdict`` at 5 % into each finding."""
    known = [finding for finding in findings if finding is not None]
    for finding, p in zip(known, holm([finding["p"] for finding in known]).tolist(), strict=True):
        finding["p_corrected"] = p
        up = finding["mean"] > 0
        finding["verdict"] = "undecided" if p > 0.05 else "better" if up == better_above else "worse"


def transfer(tasks: Sequence[Task], alone: Values, together: Mapping[tuple[str, str], Values]) -> dict[str, Any] | None:
    """What each task gains, relative to training alone, from being trained with each other one.

    Args:
        tasks: all tasks.
        alone: test metrics of single-task models.
        together: for each unordered pair the test metrics of both tasks, trained together.
    """
    names = [task.name for task in tasks]
    findings: dict[tuple[int, int], dict[str, Any]] = {}
    for pair, values in together.items():
        for name, other in (pair, pair[::-1]):
            task = tasks[names.index(name)]
            found = delta_findings({name: values[name]}, alone, [task])
            if found is None:
                return None
            findings[names.index(name), names.index(other)] = found
    correct(list(findings.values()))

    def table(field: str) -> list[list[Any]]:
        return [[findings[i, j][field] if i != j else None for j in range(len(names))] for i in range(len(names))]

    return {
        "tasks": names,
        "gain": table("mean"),
        "low": table("low"),
        "high": table("high"),
        "p_corrected": table("p_corrected"),
        "verdict": table("verdict"),
    }


def decided(transfer: Mapping[str, Any]) -> list[list[float]]:
    """The gains of a transfer table that are significant; 0 for the others."""
    return [
        [gain if verdict in ("better", "worse") else 0.0 for gain, verdict in zip(gains, verdicts, strict=True)]
        for gains, verdicts in zip(transfer["gain"], transfer["verdict"], strict=True)
    ]


def curves(tasks: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Validation metrics over training, mean and 95 % band over seeds, for the evaluations that all runs have."""
    found: dict[str, Any] = {}
    for name in tasks:
        points = [[p for p in run["curve"] if p["validation"].get(name) is not None] for run in runs]
        length = min(map(len, points))
        bands = [interval([p[i]["validation"][name] for p in points]) for i in range(length)]
        found[name] = {
            "step": [points[0][i]["step"] for i in range(length)],
            "seconds": [math.fsum(p[i]["seconds"] for p in points) / len(points) for i in range(length)],
            **{key: [band[key] for band in bands] for key in ("mean", "low", "high")},
        }
    return found


def cosine_findings(tasks: Sequence[str], method: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The cosine of each pair of task gradients, over training and on average, over seeds."""
    count = len(tasks)
    steps = [point["step"] for point in runs[0]["cosines"]]
    over_time = {}
    for i in range(count):
        for j in range(i):
            series = [interval([run["cosines"][t]["cosines"][i][j] or 0.0 for run in runs]) for t in range(len(steps))]
            over_time[j, i] = series
    means = {pair: math.fsum(point["mean"] for point in series) / len(series) for pair, series in over_time.items()}
    every = [value for series in over_time.values() for point in series for value in point["values"]]
    return {
        "tasks": list(tasks),
        "method": method,
        "mean": [[1.0 if i == j else means[min(i, j), max(i, j)] for j in range(count)] for i in range(count)],
        "over_time": {
            "step": steps,
            "pairs": [
                {
                    "tasks": [tasks[i], tasks[j]],
                    **{key: [point[key] for point in series] for key in ("mean", "low", "high")},
                }
                for (i, j), series in sorted(over_time.items())
            ],
        },
        "conflicting_share": sum(value < 0 for value in every) / len(every),
    }


def group_evidence(transfer: Mapping[str, Any]) -> list[str]:
    """Sentences that say which measured gains and losses a grouping rests on, the largest first."""
    names = transfer["tasks"]
    found = []
    for i, task in enumerate(names):
        for j, other in enumerate(names):
            if transfer["verdict"][i][j] in ("better", "worse"):
                gain, low, high = (transfer[key][i][j] for key in ("gain", "low", "high"))
                verb = "gains" if gain > 0 else "loses"
                interval = f"{percent(abs(gain))} (95 % interval {percent(low, sign=True)} to {percent(high, sign=True)})"
                found.append((abs(gain), f"{task} {verb} {interval} when trained with {other}."))
    sentences = [sentence for _, sentence in sorted(found, reverse=True)]
    return sentences or ["No pair of tasks helps or hurts each other measurably, so fewer models is the better choice."]


def grouping_outcome(delta: Mapping[str, Any]) -> str:
    """The sentence that says what training in the suggested groups came to, from the `delta_m` that it reached."""
    low, high = percent(delta["low"], sign=True), percent(delta["high"], sign=True)
    amount = percent(delta["mean"], sign=True)
    change = f"the tasks change by {amount} on average (95 % interval {low} to {high})"
    return f"Trained in these groups, {change}: {delta['verdict']}."


def summary(
    methods: Sequence[Mapping[str, Any]], grouping: Mapping[str, Any] | None, transfer: Mapping[str, Any] | None
) -> list[str]:
    """Three sentences in plain language: whether training together helped, what helps or hurts what, and what to do."""
    joint = [m for m in methods if m["role"] in ("method", "control") and m["delta_m"] is not None]
    if not joint:
        return [
            "The relative improvement over single-task models is not defined here, as a baseline metric is not above 0.",
            "Read the tables task by task.",
            "Choose for some task another main metric, one that is positive, to compare methods by one number.",
        ]
    ranked = sorted(joint, key=lambda m: -m["delta_m"]["mean"])
    best = ranked[0]
    level = [m["name"] for m in ranked if m["delta_m"]["high"] >= best["delta_m"]["low"]]
    delta = best["delta_m"]
    amount = percent(delta["mean"], sign=True)
    within = f"(95 % interval {percent(delta['low'], sign=True)} to {percent(delta['high'], sign=True)})"
    effect = (
        f"does not measurably change the metrics, {amount} on average over the tasks {within},"
        if delta["verdict"] == "undecided"
        else f"changes the metrics by {amount} on average over the tasks {within}"
    )
    which = (
        f"The best of {len(joint)} ways to train together, {best['name']},"
        if len(level) == 1
        else f"{_listed(level)} cannot be told apart; the first"
    )
    first = f"{which} {effect} against one model for each task."
    return [first, _second(transfer), _third(best, level, grouping)]


def _second(transfer: Mapping[str, Any] | None) -> str:
    if transfer is None:
        return "Which task helps which was not measured."
    pairs: dict[str, list[str]] = {"better": [], "worse": []}
    names = transfer["tasks"]
    for i, task in enumerate(names):
        for verdict, found in pairs.items():
            others = [names[j] for j in range(len(names)) if transfer["verdict"][i][j] == verdict]
            if others:
                found.append(f"{task} (by {_listed(others)})")
    helped, hurt = (_listed(pairs[verdict]) for verdict in ("better", "worse"))
    if not helped and not hurt:
        return "In pairs, no task measurably helps or hurts another."
    parts = [f"helped {helped}" if helped else "helped no task", f"hurt {hurt}" if hurt else "hurt none"]
    return f"Training in pairs {parts[0]} and {parts[1]}."


def _third(best: Mapping[str, Any], level: Sequence[str], grouping: Mapping[str, Any] | None) -> str:
    delta = best["delta_m"]
    name = best["name"]
    if delta["verdict"] == "worse":
        return "Keep a model for each task: every way to share that was tried costs accuracy."
    if name == "groups" and grouping is not None:
        return f"Train {_groups(grouping)}: this grouping was trained and measured, not only predicted."
    if delta["verdict"] == "better":
        more = "" if len(level) == 1 else ", or whichever of its equals is cheapest to run"
        return f"Train the tasks together with {name}{more}: one model that is better than one for each task."
    if best["role"] == "control" and len(level) == 1:
        return f"Use {name}: no published method here beats it, and it costs no more than the plain sum of the losses."
    return f"Train the tasks together with {name}: one model does the work of several, at no measurable cost in accuracy."


def _groups(grouping: Mapping[str, Any]) -> str:
    parts = [_listed(group) + (" together" if len(group) > 1 else " apart") for group in grouping["groups"]]
    return "; ".join(parts)


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def percent(fraction: float, sign: bool = False) -> str:
    """A fraction as a percentage with one decimal: ``+1.2 %``."""
    return f"{100 * fraction:{'+' if sign else ''}.1f} %"
