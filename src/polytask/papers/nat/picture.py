"""The picture of the claims: AP over the time of the test, and on which events it is won."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements
from polytask.papers.nat.comparison import PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {
    "nat": ("NAT", "#0072b2", "-"),
    "hop 1": ("hop 1", "#0072b2", "--"),
    "no codes": ("no codes", "#0072b2", ":"),
    "hop 0": ("hop 0", "#56b4e9", "-"),
    "tgn": ("TGN", "#d55e00", "-"),
    "edge bank": ("EdgeBank", "0.55", "--"),
    "common neighbours": ("common neighbours", "0.55", ":"),
}
MARKERS = {"-": "o", "--": "D", ":": "s"}
KINDS = {"repeats": "pairs that\nhave met", "new pairs": "pairs that\nhave not", "inductive ap": "with an\nunseen node"}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Means over seeds: a line for each arm over stretches of the test, and a mark for each kind of event."""
    from matplotlib.figure import Figure

    def mean(name: str) -> float:
        return float(np.mean([measured[name] for measured in measurements.values()]))

    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    over, by = figure.subplots(1, 2, sharey=True)
    for place, (arm, (title, colour, line)) in enumerate(STYLES.items()):
        share = (np.arange(PARTS) + 0.5) / PARTS * 100
        look = {"marker": MARKERS[line], "color": colour, "markerfacecolor": colour if line == "-" else "white"}
        parts = [mean(f"{arm} part {part}") for part in range(PARTS)]
        over.plot(share, parts, linestyle=line, linewidth=1.8, markersize=5, label=title, **look)
        shift = (place - len(STYLES) / 2 + 0.5) * 0.1
        values = [mean(f"{arm} {kind}") for kind in KINDS]
        by.plot(np.arange(len(KINDS)) + shift, values, linestyle="none", markersize=5.5, **look)
        for seed in measurements.values():
            faint = [seed[f"{arm} {kind}"] for kind in KINDS]
            by.plot(np.arange(len(KINDS)) + shift, faint, "_", color=colour, alpha=0.35, markersize=6)
    over.set_title("AP in stretches of the test (%)", fontsize=10, loc="left")
    over.set_xlabel("how far the test has gone (%)", fontsize=9)
    by.set_title("AP of events against all negatives (%)", fontsize=10, loc="left")
    by.set_xticks(range(len(KINDS)), list(KINDS.values()), fontsize=9)
    for axes in (over, by):
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.legend(*over.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure
