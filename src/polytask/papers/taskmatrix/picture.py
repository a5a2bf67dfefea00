"""The picture of the claims: what is found by which selector, and with which documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SELECTORS = {"lexical": "words", "embedding": "meaning", "hybrid": "both", "modules": "meaning, modules first"}
DOCUMENTS = {"name": "names", "description": "+ descriptions", "parameters": "+ parameters"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Recall against how many documents are shown, and before and after feedback; faint lines are seeds."""
    from matplotlib.figure import Figure

    def series(name: str) -> np.ndarray:
        return np.array([measured[name] for measured in measurements.values()])

    def recalls(axes: Axes, kind: str, arms: Mapping[str, str]) -> None:
        for (arm, label), colour in zip(arms.items(), COLOURS, strict=False):
            rows = np.stack([series(f"{kind} {arm} recall@{k}") for k in (1, 5, 10)])
            axes.plot([1, 5, 10], rows, color=colour, alpha=0.2, linewidth=1)
            axes.plot([1, 5, 10], rows.mean(1), "o-", color=colour, markersize=4, linewidth=2, label=label)
        axes.set_xticks([1, 5, 10])
        axes.set_xlabel("documents shown")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    recalls(first, "models", SELECTORS)
    first.set_title("right model among them (%)", fontsize=10, loc="left")
    recalls(second, "functions", DOCUMENTS)
    second.set_title("right function, by what is documented (%)", fontsize=10, loc="left")
    for (arm, label), colour in zip({"lexical": "words", "hybrid": "both"}.items(), (COLOURS[0], COLOURS[2]), strict=True):
        rows = np.stack([series(f"feedback {arm} {when}") for when in ("before", "after")])
        third.plot([0, 1], rows, color=colour, alpha=0.2, linewidth=1)
        third.plot([0, 1], rows.mean(1), "o-", color=colour, markersize=4, linewidth=2, label=label)
    third.set_xticks([0, 1], ["before", "after feedback"])
    third.set_xlim(-0.3, 1.3)
    third.set_ylim(bottom=0)
    third.legend(frameon=False, fontsize=8)
    third.set_title("right model among five (%)", fontsize=10, loc="left")
    for axes in (first, second, third):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    return figure
