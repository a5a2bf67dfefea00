"""The picture of the claims: how far from the table's best each way of searching ends, and what networks are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from polytask.claim import Measurements
from polytask.papers.fbnetv5 import cells, digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """By arm the mean regret among cells, of the most probable and of the best measured; and the value of networks on digits
    against what they cost. Dots are seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    probable, best, values = figure.subplots(1, 3, width_ratios=(1.1, 1.1, 1.2))
    _rows(probable, measurements, list(cells.ARMS), "", "regret of the most probable cell, points")
    _rows(best, measurements, list(cells.ARMS), " best", "regret of the best measured, points")
    probable.set_yticks(range(len(cells.ARMS)), list(cells.ARMS.values()))
    best.set_yticks(range(len(cells.ARMS)), [])
    marks = {"one run": ("#0072b2", "o"), "apart": ("#e69f00", "s"), "random": ("#d55e00", "^"), "whole": ("0.45", "D")}
    for arm, label in digits.ARMS.items():
        rows = [(m[f"{arm} macs"], m[arm]) for m in measurements.values() if f"{arm} macs" in m]
        colour, mark = marks[arm]
        values.plot(*zip(*rows, strict=True), mark, color=colour, alpha=0.3, markersize=4, linestyle="none")
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        values.plot(*mean, mark, color=colour, markersize=8, label=label, linestyle="none")
    values.set_title("digits: mean metric of three tasks, %", loc="left", fontsize=10)
    values.set_xlabel("share of the whole network's operations")
    values.legend(frameon=False, fontsize=9)
    for axes in (probable, best, values):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _rows(axes: Axes, measurements: Mapping[int, Measurements], arms: Sequence[str], what: str, title: str) -> None:
    for row, arm in enumerate(arms):
        name = f"cells {arm}{what}"
        found = [m[name] for m in measurements.values() if name in m]
        axes.plot(found, [row] * len(found), ".", color="0.65", markersize=5)
        axes.plot(sum(found) / len(found), row, "o", color="#0072b2" if row == 0 else "#d55e00", markersize=8)
    axes.set_xlim(left=0)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_title(title, loc="left", fontsize=10)
