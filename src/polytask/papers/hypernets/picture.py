"""The picture of the claims: accuracy by parameters, what ensembles make of strangers, and heads out of few examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARING = {
    "separate": ("separate", "#999999", "o"),
    "hard": ("shared layer", "#d55e00", "o"),
    "once": ("once", "#0072b2", "s"),
    "layers": ("layers", "#56b4e9", "D"),
    "heads": ("heads", "#009e73", "^"),
    "chunks": ("chunks", "#cc79a7", "v"),
}
"""A label, a colour and a marker."""

ENSEMBLES = {
    "single": "one network",
    "apart": "5 trained apart",
    "alone": "20 out of noise,\nno term",
    "noise": "20 out of noise",
}
HEADS = {"nearest": "nearest mean", "linear": "fitted head", "hypernetwork": "generated head"}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Accuracy by trainable parameters; entropy on digits and on letters; accuracy in episodes. Small dots are seeds."""
    from matplotlib.figure import Figure

    # Each seed's measurements, if it has all of them.
    every = [
        measured for measured in measurements.values() if {"once accuracy", "noise nll", "linear accuracy"} <= {*measured}
    ]
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    sharing, noise, few_shot = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))

    def mean(name: str) -> float:
        return sum(measured[name] for measured in every) / len(every)

    for method, (label, colour, marker) in SHARING.items():
        size = mean(f"{method} parameters")
        sharing.plot([size] * len(every), [m[f"{method} accuracy"] for m in every], ".", color=colour, alpha=0.3)
        sharing.plot(size, mean(f"{method} accuracy"), marker, color=colour, markersize=8, label=label)
    sharing.set_xscale("log")
    sharing.set_xlabel("trainable parameters")
    sharing.set_title("accuracy, six tasks of 150 images, %", loc="left", fontsize=10)
    sharing.legend(frameon=False, fontsize=8, ncols=2, loc="lower right")

    for row, method in enumerate(ENSEMBLES):
        ends = [mean(f"{method} entropy on {what}") for what in ("digits", "letters")]
        noise.plot(ends, [row, row], color="0.8", linewidth=3, zorder=1)
        for what, value, colour in zip(("digits", "letters"), ends, ("#0072b2", "#d55e00"), strict=True):
            noise.plot([m[f"{method} entropy on {what}"] for m in every], [row] * len(every), ".", color=colour, alpha=0.3)
            noise.plot(value, row, "o", color=colour, markersize=8, label=what if row == 0 else None)
    _rows(noise, list(ENSEMBLES.values()))
    noise.set_xlabel("nats")
    noise.set_title("predictive entropy, trained on digits", loc="left", fontsize=10)
    noise.legend(frameon=False, fontsize=8, loc="lower right")

    for row, method in enumerate(HEADS):
        few_shot.plot([m[f"{method} accuracy"] for m in every], [row] * len(every), ".", color="#0072b2", alpha=0.3)
        few_shot.plot(mean(f"{method} accuracy"), row, "o", color="#0072b2", markersize=8)
    _rows(few_shot, list(HEADS.values()))
    few_shot.set_xlabel("%")
    few_shot.set_title("accuracy on five new classes", loc="left", fontsize=10)

    for axes in (sharing, noise, few_shot):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    return figure


def _rows(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, len(labels) - 0.4)
