"""The picture of the claims: what carries over from which network to which, and what rules do against EarlyAttack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORKS = {"static": "static", "static2": "static, other", "sdn": "exits", "ic": "exits on static"}
SOURCES = NETWORKS | {"sdn sum": "exits, their sum", "ic sum": "on static, their sum"}
RULES = {
    "exits": "as it is",
    "agree": "two in a row agree",
    "strict": "threshold 0.99",
    "calibrated": "calibrated",
    "unsure": "last answers if unsure",
    "fewer": "one early exit",
    "last": "no early exit",
}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Means over seeds; on the right a faint mark for each seed."""
    from matplotlib.figure import Figure

    def series(name: str) -> np.ndarray:
        return np.array([measured[name] for measured in measurements.values()])

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    rates = np.array([[series(f"{source} to {target}").mean() for target in NETWORKS] for source in SOURCES])
    left.imshow(rates, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), rate in np.ndenumerate(rates):
        left.text(column, row, f"{rate:.0f}", ha="center", va="center", fontsize=9, color="white" if rate > 55 else "0.15")
    left.set_xticks(range(len(NETWORKS)), list(NETWORKS.values()), fontsize=8)
    left.set_yticks(range(len(SOURCES)), list(SOURCES.values()), fontsize=8)
    left.set_xlabel("judged on")
    left.set_ylabel("made for")
    left.set_title("images that PGD has made wrong (%)", fontsize=10, loc="left")
    left.tick_params(length=0)
    for place, rule in enumerate(RULES):
        for kind, colour, label in (("clean", "0.55", "as they are"), ("attacked", "#d55e00", "attacked")):
            found = series(f"sdn {kind} {rule}")
            right.plot(found, [place] * len(found), "o", color=colour, alpha=0.3, markersize=5, markeredgewidth=0)
            right.plot(
                [found.mean()] * 2,
                [place - 0.3, place + 0.3],
                color=colour,
                linewidth=2.5,
                label=label if not place else None,
            )
        right.text(103, place, f"{series(f'sdn saved {rule}').mean():.0f} %", va="center", fontsize=8, color="0.35")
    right.text(103, -0.85, "work saved", fontsize=8, color="0.35")
    right.set_yticks(range(len(RULES)), list(RULES.values()), fontsize=8)
    right.set_ylim(len(RULES) - 0.5, -0.6)
    right.set_xlim(-2, 101)
    right.set_title("right answers, EarlyAttack on a network with exits (%)", fontsize=10, loc="left")
    right.grid(axis="x", color="0.92")
    right.legend(frameon=False, fontsize=8, loc="lower left")
    right.set_axisbelow(True)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
