"""The pictures of the page: which plots it holds, at which sizes, of which findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from polytask.report import plots
from polytask.report.palette import SENTINELS
from polytask.report.svg import axes, figure, inline
from polytask.report.view import PLAIN, Results, Row, highlighted, joint, ordered
from polytask.report.words import percent, percent_interval

SMALL = (344, 240)
"""The size of one of several small plots: what fits a phone's width, and three of which fit a desk's."""


def draw(results: Results) -> dict[str, Any]:
    """All pictures of a page, as SVG by name."""
    tasks = results["data"]["tasks"]
    return {
        "forest": [_forest(results, 1040, narrow=False), _forest(results, 348, narrow=True)],
        "clipped": _clipped(results),
        "curves": [_curves(results, task, i) for i, task in enumerate(tasks)],
        "cost": [made for made in (_delta_cost(results, what) for what in COSTS) if made],
        "task_cost": [_task_cost(results, task, i) or "" for i, task in enumerate(tasks)],
    }


COSTS: Mapping[str, str] = {"seconds": "training time", "parameters": "parameters", "peak_memory_mb": "peak memory (MB)"}
"""Costs that results hold, and what plots call them."""


def cost_of(row: Row, what: str) -> float | None:
    """A cost of a row: its mean where it has one for each seed."""
    value = row[what]
    found = value["mean"] if isinstance(value, Mapping) else value
    return None if found is None else float(found)


def label(row: Row) -> str:
    """A row's name as plots show it."""
    return f"{row['name']} (control)" if row["role"] == "control" else str(row["name"])


def _forest(results: Results, width: int, narrow: bool) -> Markup:
    rows = joint(results)
    called = [row["name"] if narrow else label(row) for row in rows]
    longest = max(map(len, called), default=0)
    names = min(longest, 19 if narrow else 40)
    described = "; ".join(
        f"{row['name']} {percent(row['delta_m']['mean'])} {percent_interval(row['delta_m'])}"
        for row in rows
        if row["delta_m"]
    )
    height = 27 * len(rows) + 34
    with figure(width, height) as drawn:
        ax = axes(drawn, 7.0 * names + 16, 62 if narrow else 190, 6, 28)
        plots.forest(
            ax,
            [(name, row["delta_m"]) for name, row in zip(called, rows, strict=True)],
            SENTINELS,
            names=names,
            narrow=narrow,
        )
        return inline(drawn, "forest-narrow" if narrow else "forest", f"delta_m with 95 % intervals: {described}")


def _clipped(results: Results) -> bool:
    """Whether an interval of the forest plot goes beyond it."""
    found = [row["delta_m"] for row in joint(results) if row["delta_m"]]
    low, high = plots.limits(found)
    return any(f["low"] < low or f["high"] > high for f in found)


def _curves(results: Results, task: Mapping[str, Any], index: int) -> Markup:
    name = task["name"]
    shown = [row["name"] for row in highlighted(results)]
    spare = iter(("first", "second", "third"))
    lines = []
    for row in sorted(ordered(results), key=lambda row: row["name"] not in shown):
        curve = row["curves"].get(name)
        chosen, dashed = _curve_colour(row, shown)
        if chosen == "":
            chosen = next(spare, None)
        if curve and curve["step"]:
            points, mean, low, high = (curve[key] for key in ("step", "mean", "low", "high"))
            lines.append(plots.Line(row["name"], points, mean, low, high, chosen, dashed))
    with figure(*SMALL) as drawn:
        plots.curves(axes(drawn, 44, 108, 8, 24), lines, SENTINELS, names=16)
        return inline(drawn, f"curve-{index}", f"Validation {task['metric']} of {name} over training steps")


def _curve_colour(row: Row, shown: Sequence[str]) -> tuple[str | None, bool]:
    """The colour and dash of a row's learning curve; an empty colour stands for one of its own."""
    if row["name"] not in shown:
        return None, False
    if row["role"] == "baseline":
        return "ink", True
    if row["role"] == "control":
        return "muted", True
    return ("muted" if row["name"] == PLAIN else ""), False


def _delta_cost(results: Results, what: str) -> dict[str, Any] | None:
    points = [
        plots.Point(row["name"], spent, row["delta_m"])
        for row in joint(results)
        if row["delta_m"] and (spent := cost_of(row, what)) is not None
    ]
    if not points:
        return None
    zero = {"mean": 0.0, "low": 0.0, "high": 0.0}
    for row in results["methods"]:
        if row["role"] == "baseline" and (spent := cost_of(row, what)) is not None:
            points.append(plots.Point(row["name"], spent, zero, baseline=True))
    with figure(SMALL[0], max(SMALL[1], 14 * len(points) + 40)) as drawn:
        ax = axes(drawn, 48, 118, 8, 24)
        plots.cost(ax, points, SENTINELS, names=17, relative=True, time=what == "seconds")
        svg = inline(drawn, f"cost-{what}", f"delta_m of each method against its {COSTS[what]}")
    return {"what": COSTS[what], "svg": svg}


def _task_cost(results: Results, task: Mapping[str, Any], index: int) -> Markup | None:
    points = []
    for row in ordered(results):
        found, spent = row["tasks"].get(task["name"]), cost_of(row, "seconds")
        if found and spent is not None:
            tested = {**found, "verdict": (found["difference"] or {}).get("verdict")}
            points.append(plots.Point(row["name"], spent, tested, baseline=row["role"] == "baseline"))
    if not points:
        return None
    with figure(SMALL[0], max(SMALL[1], 14 * len(points) + 40)) as drawn:
        ax = axes(drawn, 44, 118, 8, 24)
        plots.cost(ax, points, SENTINELS, names=17, relative=False, time=True)
        return inline(drawn, f"task-cost-{index}", f"Test {task['metric']} of {task['name']} against training time")
