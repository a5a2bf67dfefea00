"""The picture of the claims: how well each way of merging classifies, and what AdaMerging has learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = {
    "base": "base",
    "average": "average",
    "arithmetic": "task arithmetic, 0.3",
    "tuned": "task arithmetic, tuned",
    "ties": "TIES, 0.3",
    "ties tuned": "TIES, tuned",
    "task-wise": "task-wise AdaMerging",
    "task-wise++": "task-wise AdaMerging++",
    "layer-wise": "layer-wise AdaMerging",
    "layer-wise++": "layer-wise AdaMerging++",
    "individual": "the experts themselves",
}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Mean test accuracy of each method, a dot for each seed; and the mean learned coefficients, by task and tensor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    seeds = list(measurements.values())
    for place, name in enumerate(BARS):
        found = [measured[name] for measured in seeds]
        colour = "#d55e00" if "wise" in name else "#555555" if name in ("base", "individual") else "#0072b2"
        left.plot(found, [place] * len(found), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
        left.plot([np.mean(found)] * 2, [place - 0.32, place + 0.32], color=colour, linewidth=2.5)
    left.set_yticks(range(len(BARS)), list(BARS.values()))
    left.invert_yaxis()
    left.set_title("mean test accuracy (%)", fontsize=10, loc="left")
    left.grid(axis="x", alpha=0.3)
    left.spines[["top", "right"]].set_visible(False)

    learned = [name.removeprefix("lambda ").rsplit("/", 1) for name in seeds[0] if name.startswith("lambda ")]
    tasks, tensors = (list(dict.fromkeys(column)) for column in zip(*learned, strict=True))
    mean = [[float(np.mean([m[f"lambda {task}/{tensor}"] for m in seeds])) for tensor in tensors] for task in tasks]
    image = right.imshow(mean, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    right.set_xticks(range(len(tensors)), tensors, rotation=35, ha="right")
    right.set_yticks(range(len(tasks)), tasks)
    if len(tensors) <= 12:
        for row, values in enumerate(mean):
            for column, value in enumerate(values):
                ink = "black" if value > 0.5 else "white"
                right.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    right.set_title("coefficients of layer-wise AdaMerging (from 0.3)", fontsize=10, loc="left")
    figure.colorbar(image, ax=right, shrink=0.9)
    return figure
