"""The picture of the claims: HR@100 of each arm on each graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = {
    "ncnc": "NCNC",
    "ncn": "NCN",
    "ncn without tlr": "NCN, targets left in",
    "gae+cn": "GAE and count",
    "gae": "GAE",
}
HEURISTICS = {"cn": "CN", "aa": "AA", "ra": "RA"}
TITLES = {"cora": "Cora", "citeseer": "Citeseer"}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """What was trained: means over seeds, a faint mark for each. Below, in words, what was not: it is far to the left."""
    from matplotlib.figure import Figure

    def series(name: str) -> np.ndarray:
        return np.array([measured[f"{name} hits"] for measured in measurements.values()])

    figure = Figure(figsize=(9.5, 2.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (graph, title) in zip(panels, TITLES.items(), strict=True):
        for place, arm in enumerate(ARMS):
            found = series(f"{graph} {arm}")
            colour = "#0072b2" if arm in ("ncn", "ncnc") else "0.45"
            axes.plot(found, [place] * len(found), "o", color=colour, alpha=0.35, markersize=5, markeredgewidth=0)
            axes.plot([found.mean()] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.5)
        axes.set_title(f"{title}: HR@100 on test links (%)", fontsize=10, loc="left")
        words = ", ".join(f"{name} {series(f'{graph} {arm}').mean():.1f}" for arm, name in HEURISTICS.items())
        axes.set_xlabel(f"without learning: {words}", fontsize=8, color="0.35")
        axes.grid(axis="x", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(ARMS)), list(ARMS.values()))
    panels[0].invert_yaxis()
    return figure
