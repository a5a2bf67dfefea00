"""The picture of the claims: what searches reach by how many evaluations, and how well predictors rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polytask.claim import Measurements
from polytask.papers.hardware_aware import cells, once_for_all, prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {"linas": ("LINAS", "#0072b2", "o"), "nsga2": ("NSGA-II", "#d55e00", "s"), "random": ("random", "0.5", "^")}
"""A label, a colour and a marker."""


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """The hypervolume by evaluations, among sub-networks and for cells on each device; Kendall's tau by training rows."""
    from matplotlib.figure import Figure

    def series(axes: Any, names: Sequence[str], places: Sequence[int], label: str, colour: str, marker: str) -> None:
        """The mean, and a band of a standard deviation over seeds, on both sides."""
        rows = np.array([[measured[name] for name in names] for measured in measurements.values() if names[0] in measured])
        mean, spread = rows.mean(0), rows.std(0)
        axes.fill_between(places, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        axes.plot(places, mean, color=colour, marker=marker, markersize=4.5, linewidth=2, label=label)

    figure = Figure(figsize=(14.5, 3.7), layout="constrained")
    first, *devices, last = figure.subplots(1, 5, width_ratios=[1.3, 1, 1, 1, 1.1])
    for name, look in LOOKS.items():
        series(first, [f"{name} at {n}" for n in once_for_all.POINTS], once_for_all.POINTS, *look)
        for axes, device in zip(devices, cells.DEVICES, strict=True):
            series(axes, [f"{device} {name} at {n}" for n in cells.POINTS], cells.POINTS, *look)
            axes.set_title(f"cells on {device}", loc="left", fontsize=10)
            axes.set_ylim(0.78, 1.005)
            axes.set_xticks(cells.POINTS)
    first.set_title("Once-for-All: hypervolume / 1e8", loc="left", fontsize=10)
    first.set_xticks(once_for_all.POINTS)
    devices[0].set_ylabel("share of the hypervolume")
    for axes in (first, *devices):
        axes.set_xlabel("evaluations")
    for name, label, colour, marker in (("chosen", "ridge or SVR", "#0072b2", "o"), ("top1", "ridge", "#009e73", "D")):
        taus = [f"{name} tau {n}" for n in prediction.SAMPLES]
        series(last, taus, prediction.SAMPLES, label, colour, marker)
    last.set_title("top-1: Kendall's tau, 500 held out", loc="left", fontsize=10)
    last.set_xlabel("training networks")
    last.legend(frameon=False, loc="lower right", fontsize=9)
    first.legend(frameon=False, loc="lower right", fontsize=9)
    for axes in (first, *devices, last):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    return figure
