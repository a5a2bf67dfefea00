"""The picture of the claims: what a new task costs and how well it is learned, and whether tasks' gradients agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"lora": "0.45", "lora-big": "black", "poly": "#0072b2", "mhr": "#d55e00", "random": "#009e73"}
LABELS = {"lora": "LoRA", "lora-big": "LoRA, rank 8", "poly": "Poly", "mhr": "MHR"}
ROWS = LABELS | {
    "poly-mu": "Poly-mu",
    "mhr-mu": "MHR-mu",
    "random": "LoRA from scratch",
    "poly-z": "Poly-z",
    "mhr-z": "MHR-z",
}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Means over seeds, with a faint mark for each seed."""
    from matplotlib.figure import Figure

    def series(name: str) -> np.ndarray:
        return np.array([measured[name] for measured in measurements.values()])

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    labels = []
    for place, (name, label) in enumerate(ROWS.items()):
        base, found = name.removesuffix("-z").removesuffix("-mu"), series(name)
        left.plot(found, [place] * len(found), "o", color=COLOURS[base], alpha=0.35, markersize=4, markeredgewidth=0)
        left.plot([found.mean()] * 2, [place - 0.3, place + 0.3], color=COLOURS[base], linewidth=2.5)
        if f"{name} zero-shot" in next(iter(measurements.values())):
            left.plot(series(f"{name} zero-shot").mean(), place, "|", color="0.5", markersize=9)
        labels.append(f"{label} ({series(f'{name} numbers').mean():,.0f})")
    left.set_yticks(range(len(labels)), labels)
    left.set_ylabel("numbers trained for a task in brackets", fontsize=8, color="0.4")
    left.invert_yaxis()
    left.set_title("accuracy on new tasks (%); grey: before transfer", fontsize=10, loc="left")
    left.grid(axis="x", color="0.92")

    names = [name for name in next(iter(measurements.values())) if name.startswith("mhr cosine ")]
    steps = [int(name.rsplit(" ", 1)[1]) for name in names]
    for name, label in LABELS.items():
        found = np.array([series(f"{name} cosine {step}") for step in steps])
        right.plot(steps, found, ".", color=COLOURS[name], alpha=0.3, markeredgewidth=0)
        right.plot(steps, found.mean(1), marker="o", markersize=4, color=COLOURS[name], label=label)
    right.axhline(0, color="0.8", linewidth=1, zorder=0)
    right.set_xlabel("step of training on all tasks")
    right.set_title("mean cosine of two tasks' gradients", fontsize=10, loc="left")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure
