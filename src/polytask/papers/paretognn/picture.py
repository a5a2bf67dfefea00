"""The picture of the claims: each arm on each task, and over all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements
from polytask.papers.paretognn.comparison import FILES
from polytask.papers.paretognn.evaluation import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "link": "links",
    "recon": "features",
    "ming": "node and graph",
    "minsg": "node and subgraph",
    "decor": "decorrelation",
    "equal": "all, equal weights",
    "random": "all, random weights",
    "pcgrad": "all, PCGrad",
    "pareto": "all, ParetoGNN",
}
TITLES = {"class": "classes", "cluster": "clusters (NMI)", "part": "parts", "link": "links (AUC)"}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """A panel for each task, the mean over graphs, and one over all tasks: means over seeds, a faint mark for each."""
    from matplotlib.figure import Figure

    def series(arm: str, task: str | None) -> np.ndarray:
        if task is None:
            return np.array([measured[f"{arm} score"] for measured in measurements.values()])
        every = [[measured[f"{graph} {arm} {task}"] for graph in FILES] for measured in measurements.values()]
        mean: np.ndarray = np.array(every).mean(1)
        return mean

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, 1 + len(TASKS), sharey=True)
    for axes, task in zip(panels, (*TASKS, None), strict=True):
        for place, arm in enumerate(NAMES):
            found = series(arm, task)
            colour = "#d55e00" if arm == "pareto" else "#0072b2" if place > 4 else "0.45"
            axes.plot(found, [place] * len(found), "o", color=colour, alpha=0.35, markersize=5, markeredgewidth=0)
            axes.plot([found.mean()] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.5)
        axes.axhline(4.5, color="0.8", linewidth=0.8)
        axes.set_title("mean of the four" if task is None else TITLES[task], fontsize=10, loc="left")
        axes.grid(axis="x", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(NAMES)), list(NAMES.values()))
    panels[0].invert_yaxis()
    figure.supxlabel("percent, mean over Cora, Citeseer and Actor", fontsize=9, color="0.35")
    return figure
