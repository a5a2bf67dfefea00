"""The picture of the claims: each task by each arm, and relations that training did not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements
from polytask.papers.ofa.comparison import SHOTS, TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = {
    "joint": ("one network for all", "#0072b2"),
    "ind": ("one for each task", "#56b4e9"),
    "text": ("texts without the graph", "#e69f00"),
    "majority": ("most frequent class", "0.6"),
}
TITLES = {
    "relations": "link: relation\n(accuracy)",
    "topics": "node: field\n(accuracy)",
    "hiv": "graph: HIV\n(AUC)",
    "bbbp": "graph: BBBP\n(AUC)",
}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Left: the tasks, a bar of means for each arm, a mark for each seed. Right: accuracy by the number of samples shown."""
    from matplotlib.figure import Figure

    def series(name: str) -> np.ndarray:
        return np.array([measured[name] for measured in measurements.values()])

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
    width = 0.2
    for k, (arm, (label, colour)) in enumerate(ARMS.items()):
        for place, task in enumerate(TASKS):
            found, x = series(f"{task} {arm}"), place + (k - 1.5) * width
            left.bar(x, found.mean(), 0.9 * width, color=colour, label=label if place == 0 else None)
            left.plot([x] * len(found), found, "o", color="black", alpha=0.45, markersize=3, markeredgewidth=0)
    left.set_xticks(range(len(TASKS)), [TITLES[task] for task in TASKS])
    left.set_ylim(0, 114)
    left.set_yticks(range(0, 101, 20))
    left.set_title("Two domains, three kinds of tasks (% on test data)", fontsize=10, loc="left")
    left.legend(ncols=4, fontsize=7.5, frameon=False, loc="upper left", columnspacing=1.0, handlelength=1.2)
    for name, label, colour, shots in (
        ("shots", "OFA", "#0072b2", SHOTS),
        ("prototypes", "nearest mean of texts", "#e69f00", SHOTS[1:]),
    ):
        found = np.stack([series(f"{name} {k}") for k in shots])
        right.plot(shots, found.mean(1), "-", color=colour, label=label)
        right.plot(shots, found, "o", color=colour, alpha=0.45, markersize=4, markeredgewidth=0)
    right.axhline(series("chance").mean(), color="0.6", linestyle="--", linewidth=1, label="chance")
    right.set_xticks(SHOTS)
    right.set_ylim(0, 100)
    right.set_xlabel("samples of each relation that are shown")
    right.set_title("Relations never trained on (%)", fontsize=10, loc="left")
    right.legend(fontsize=7.5, frameon=False, loc="upper left")
    for axes in (left, right):
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure
