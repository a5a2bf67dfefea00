"""The picture of the claims: accuracy over cost, what a preference does to its task, and what is covered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = {
    "separate": ("networks of one width, each by itself", "0.35", "--"),
    "plain": ("supernet, labels alone", "#0072b2", "-"),
    "outputs": ("supernet, outputs distilled", "#e69f00", "-"),
    "ci-kd": ("supernet, representation distilled", "#d55e00", "-"),
}
SIDES = {"not preferred": ("another task preferred", "0.6", "v"), "random": ("random decoders", "#0072b2", "o")}
SIDES |= {"preferred": ("task preferred", "#d55e00", "^")}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Means over seeds, with a faint mark for each seed."""
    from matplotlib.figure import Figure

    def series(name: str) -> np.ndarray:
        return np.array([measured[name] for measured in measurements.values()])

    names = list(next(iter(measurements.values())))
    widths = [name.removeprefix("cost ") for name in names if name.startswith("cost ")]
    tasks = [name.removeprefix("range ") for name in names if name.startswith("range ")]
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    cost, control, covered = figure.subplots(1, 3, width_ratios=[1.5, 1.3, 0.9])

    operations = [series(f"cost {width}").mean() / 1e6 for width in widths]
    for name, (label, colour, style) in LINES.items():
        found = np.array([series(f"{name} all {width}") for width in widths])
        cost.plot(operations, found, ".", color=colour, alpha=0.3, markeredgewidth=0)
        cost.plot(operations, found.mean(1), style, marker="o", markersize=4, color=colour, label=label)
    cost.set_xlabel("million operations, one width for all")
    cost.set_title("mean value of the tasks (%)", fontsize=10, loc="left")

    for offset, (side, (label, colour, marker)) in zip((-0.2, 0, 0.2), SIDES.items(), strict=True):
        found = np.array([series(f"{side} {task}") for task in tasks])
        places = np.arange(len(tasks)) + offset
        control.plot(places, found, ".", color=colour, alpha=0.3, markeredgewidth=0)
        control.plot(places, found.mean(1), marker, color=colour, markersize=7, label=label)
    control.set_xticks(range(len(tasks)), tasks)
    control.set_xlim(-0.5, len(tasks) - 0.5)
    control.set_title("value of a task (%) at equal budgets", fontsize=10, loc="left")

    bars = {"static hypervolume": "even only", "conditioned hypervolume": "conditioned", "hypervolume": "searched"}
    for place, (name, label) in enumerate(bars.items()):
        colour = "#d55e00" if label == "searched" else "0.6"
        covered.bar(place, series(name).mean(), 0.6, color=colour)
        covered.plot([place] * len(measurements), series(name), ".", color="black", alpha=0.4, markeredgewidth=0)
    covered.set_xticks(range(len(bars)), list(bars.values()), fontsize=9)
    covered.set_title("hypervolume of skills", fontsize=10, loc="left")

    for axes in (cost, control, covered):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    for axes in (cost, control):
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return figure
