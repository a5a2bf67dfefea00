"""The picture of the claims: loss against the number of big layers, for every way to choose them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements
from polytask.papers.duo_llm.characters import BUDGETS, LAYERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "mean": ("mean of all patterns", "0.6"),
    "fixed": ("best fixed pattern", "#000000"),
    "surest": ("surest pattern of each token", "#e69f00"),
    "random": ("best of ten for each token", "#56b4e9"),
    "oracle": ("oracle", "#009e73"),
}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """The mean over seeds as a line, a faint line for each seed; routers where they came to."""
    from matplotlib.figure import Figure

    runs = list(measurements.values())
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    budgets = range(LAYERS + 1)
    for name, (label, colour) in LABELS.items():
        curves = np.array([[run[f"{name} at {big}"] for big in budgets] for run in runs])
        for curve in curves:
            axes.plot(budgets, curve, color=colour, alpha=0.2, linewidth=1)
        axes.plot(budgets, curves.mean(0), ".-", color=colour, label=label)
    for big in BUDGETS:
        spots = np.array([[run[f"router layers at {big}"], run[f"router at {big}"]] for run in runs])
        axes.plot(*spots.T, "D", color="#d55e00", markersize=5, alpha=0.6, label="router" if big == BUDGETS[0] else None)
    axes.plot(
        [3] * len(runs), [run["noise at 3"] for run in runs], "x", color="#cc79a7", label="oracle over models with noise"
    )
    axes.set_xlabel("big layers of a token, of six")
    axes.set_title("cross-entropy of the next character, nats", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
