"""The picture of the claims: AP over the batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements
from polytask.papers.pres.comparison import ARMS, BATCHES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {
    "pres": ("PRES", "#0072b2", "-"),
    "correction": ("correction alone", "#0072b2", ":"),
    "coherence": ("coherence alone", "0.45", ":"),
    "tgn": ("TGN", "0.2", "-"),
}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """A line for each arm, the mean over seeds; a faint mark for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for arm in ARMS:
        title, colour, line = STYLES[arm]
        found = np.array([[measured[f"{arm} {size} ap"] for size in BATCHES] for measured in measurements.values()])
        axes.plot(BATCHES, found.T, "o", color=colour, alpha=0.2, markersize=4, markeredgewidth=0)
        axes.plot(BATCHES, found.mean(0), line, color=colour, linewidth=2, label=title)
    axes.set_xscale("log")
    axes.set_xticks(BATCHES, [str(size) for size in BATCHES])
    axes.minorticks_off()
    axes.set_xlabel("events in a training batch", fontsize=9)
    axes.set_title("AP on test events (%)", fontsize=10, loc="left")
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
