"""The picture of the claims: accuracy of each way to adapt, how evenly ranks are used, and by which task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = {
    "lora 4": ("LoRA, rank 4", "0.35"),
    "lora 16": ("LoRA, rank 16", "0.35"),
    "moe 1 of 4": ("softmax, 1 of 4 experts", "#0072b2"),
    "moe 2 of 8": ("softmax, 2 of 8 experts", "#0072b2"),
    "blocks 1 of 4": ("sigmoid, 1 of 4 experts", "#e69f00"),
    "blocks 2 of 8": ("sigmoid, 2 of 8 experts", "#e69f00"),
    "smora": ("SMoRA, 4 of 16 ranks", "#d55e00"),
    "smora balanced": ("SMoRA, larger bias steps", "#d55e00"),
}
LINES = {"smora": ("bias steps of 1e-5, the paper's", "-"), "smora balanced": ("bias steps of 1e-3", "--")}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """A dot for each seed, and means; which task uses which rank is the first seed's, since ranks have no order."""
    from matplotlib.figure import Figure

    seeds = list(measurements.values())
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    scores, loads, use = figure.subplots(1, 3, width_ratios=[1.2, 1, 1.3])

    for place, (name, (_, colour)) in enumerate(ROWS.items()):
        found = [measured[name] for measured in seeds]
        scores.plot(found, [place] * len(found), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
        scores.plot([np.mean(found)] * 2, [place - 0.32, place + 0.32], color=colour, linewidth=2.5)
    scores.set_yticks(range(len(ROWS)), [label for label, _ in ROWS.values()])
    scores.invert_yaxis()
    scores.set_title("mean test accuracy (%)", fontsize=10, loc="left")
    scores.grid(axis="x", alpha=0.3)

    for name, (label, style) in LINES.items():
        ranks = sum(key.startswith(f"{name} load ") for key in seeds[0])
        every = np.array([[measured[f"{name} load {i}"] for i in range(ranks)] for measured in seeds])
        loads.plot(range(1, ranks + 1), every.mean(0), style, marker="o", markersize=3, color="#d55e00", label=label)
    loads.axhline(1, color="0.7", linewidth=0.8)
    loads.set_ylim(0, 1.25 * loads.get_ylim()[1])
    loads.set_xlabel("ranks, those used most first")
    loads.set_title("load over the mean load", fontsize=10, loc="left")
    loads.legend(frameon=False, fontsize=8)

    keys = [key.removeprefix("use ").rsplit("/", 1) for key in seeds[0] if key.startswith("use ")]
    tasks = sorted({task for task, _ in keys})
    shares = np.array([[seeds[0][f"use {task}/{rank}"] for of, rank in keys if of == task] for task in tasks])
    image = use.imshow(100 * shares[:, shares.mean(0).argsort()[::-1]], cmap="cividis", vmin=0, vmax=100, aspect="auto")
    use.set_yticks(range(len(tasks)), tasks)
    use.set_xticks([])
    use.set_xlabel("ranks of the last layer, one seed")
    use.set_title("a task's examples that choose a rank (%)", fontsize=10, loc="left")
    figure.colorbar(image, ax=use, shrink=0.9)
    for axes in (scores, loads):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
