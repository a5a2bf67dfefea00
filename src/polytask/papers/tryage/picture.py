"""The picture of the claims: regret of each way to choose, and the fronts of loss against cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from polytask.claim import Measurements
from polytask.papers.tryage.domains import CARDS
from polytask.route import LAMBDAS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "random": "chance",
    "single": "best single model",
    "card": "nearest model card",
    "few": "router of 105 prompts",
    "bandit": "the same, gone on learning",
    "sentences": "router on sentences",
    "n-grams": "router on n-grams",
    "router": "router, validated",
    "best classifier": "classifier of the best",
    "domain classifier": "classifier of domains",
    "true domain": "true domain",
}

COLOURS = {"router": "#0072b2", "oracle": "#009e73"}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Regret on a logarithmic scale, a dot for each seed; loss against cost as the weight of the cost rises."""
    from matplotlib.figure import Figure

    runs = list(measurements.values())

    def mean(name: str) -> float:
        return float(np.mean([run[name] for run in runs]))

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    regrets, fronts = figure.subplots(1, 2, width_ratios=[1, 1.15])
    for row, name in enumerate(LABELS):
        colour = COLOURS["router"] if name == "router" else "0.35"
        regrets.plot([run[f"{name} regret"] for run in runs], [row] * len(runs), "o", color=colour, alpha=0.35, markersize=4)
        regrets.plot([mean(f"{name} regret")] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
    regrets.set_yticks(range(len(LABELS)), list(LABELS.values()))
    regrets.invert_yaxis()
    regrets.set_xscale("log")
    regrets.grid(axis="x", alpha=0.3)
    regrets.set_title("regret, bits per character", loc="left", fontsize=10)
    for name, colour in COLOURS.items():
        label = {"router": "router", "oracle": "true losses"}[name]
        for run in runs:
            fronts.plot(*_curve(run, name), color=colour, alpha=0.2, linewidth=1)
        averaged = {key: mean(key) for key in runs[0] if key.startswith(f"{name} ")}
        fronts.plot(*_curve(averaged, name), ".-", color=colour, label=label, markersize=4)
    for name in CARDS:
        fronts.plot(mean(f"expert {name} cost"), mean(f"expert {name} loss"), "s", color="0.5", markersize=4)
    for name, place, side in (("general", (-4, 6), "right"), ("tiny", (6, 2), "left")):
        spot = (mean(f"expert {name} cost"), mean(f"expert {name} loss"))
        fronts.annotate(name, spot, xytext=place, textcoords="offset points", ha=side, fontsize=8, color="0.3")
    fronts.plot([], [], "s", color="0.5", markersize=4, label="single experts")
    fronts.set_xlabel("mean cost: 0 the smallest model, 1 the largest, by log(n-grams)")
    fronts.set_title("loss, bits per character, for rising weights of the cost", loc="left", fontsize=10)
    fronts.grid(alpha=0.3)
    fronts.legend(frameon=False, fontsize=8)
    for axes in (regrets, fronts):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _curve(run: Mapping[str, float], name: str) -> tuple[list[float], list[float]]:
    weights = range(len(LAMBDAS))
    return [run[f"{name} cost at {i}"] for i in weights], [run[f"{name} loss at {i}"] for i in weights]
