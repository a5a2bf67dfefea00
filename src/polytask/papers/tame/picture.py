"""The picture of the claims: how good each arm is on split MNIST, and which shifts were found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = {
    "chosen": "TAME, each task's own expert",
    "told": "TAME, told of the changes",
    "tame": "TAME",
    "pruned": "TAME, 98 % pruned",
    "replay": "one network with replay",
    "random": "TAME, random experts",
    "single": "one network",
}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Means over seeds, with a faint mark for each seed."""
    from matplotlib.figure import Figure

    def series(name: str) -> np.ndarray:
        return np.array([measured[name] for measured in measurements.values()])

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    for place, arm in enumerate(ARMS):
        found, colour = series(f"split {arm}"), "#0072b2" if arm in ("tame", "pruned") else "0.45"
        left.plot(found, [place] * len(found), "o", color=colour, alpha=0.35, markersize=5, markeredgewidth=0)
        left.plot([found.mean()] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.5)
    left.set_yticks(range(len(ARMS)), list(ARMS.values()))
    left.invert_yaxis()
    left.set_title("test accuracy over five tasks (%)", fontsize=10, loc="left")
    left.grid(axis="x", color="0.92")
    names = sorted(name for name in next(iter(measurements.values())) if name.startswith("split found "))
    rates = [100 * series(name).mean() for name in names]
    right.bar(range(len(rates)), rates, color="#0072b2", width=0.6)
    digits = ["0, 1", "2, 3", "4, 5", "6, 7", "8, 9"]
    right.set_xticks(range(len(rates)), [f"to {digits[int(name.rsplit(' ', 1)[1])]}" for name in names])
    right.set_ylim(0, 100)
    delay, false = series("split delay").mean(), series("split false alarms").mean()
    right.set_title("changes of task found (% of seeds)", fontsize=10, loc="left")
    right.set_xlabel(f"{delay:.1f} batches late; {false:.1f} false ones a stream", fontsize=9, color="0.35")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure
