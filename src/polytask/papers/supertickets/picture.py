"""The picture of the claims: accuracy over sparsity, other ways to prune, and what moves to another task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polytask.claim import Measurements
from polytask.papers.supertickets.comparison import MAIN, SPARSITIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = {
    "supertickets": ("two in one", "#0072b2", "o"),
    "retrained": ("search, prune, train on", "#d55e00", "s"),
    "one-shot": ("search, prune", "0.5", "^"),
    "dense": ("plain network, as many parameters", "#009e73", "D"),
}
"""A label, a colour and a marker."""
PRUNED = {
    "supertickets": "two in one",
    "reset": "masks reset",
    "frozen": "never back",
    "retrained": "magnitude",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "random": "random",
}
MOVED = {"moved": "MNIST's ticket", "shuffled": "its weights,\nrandom masks", "own": "ticket found\non clothes"}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Test accuracies: a line or a bar for the mean, dots for seeds."""
    from matplotlib.figure import Figure

    seeds = list(measurements.values())
    figure = Figure(figsize=(11.5, 3.8), layout="constrained")
    over, beside, moved = figure.subplots(1, 3, width_ratios=(1.2, 1.3, 0.9))
    for arm, (label, colour, marker) in LINES.items():
        rows = [[measured[f"{arm} {sparsity}"] for sparsity in SPARSITIES] for measured in seeds]
        for row in rows:
            over.plot(SPARSITIES, row, ".", color=colour, alpha=0.35, markersize=4)
        over.plot(
            SPARSITIES, [_mean(column) for column in zip(*rows, strict=True)], color=colour, marker=marker, label=label
        )
    over.set_xticks(SPARSITIES)
    over.set_xlabel("share of weights pruned")
    over.set_ylabel("test accuracy, %")
    over.legend(frameon=False, fontsize=8, loc="lower left")
    over.set_title("MNIST, equal steps", loc="left", fontsize=10)
    _bars(beside, [[m[f"{arm} {MAIN}"] for m in seeds] for arm in PRUNED], list(PRUNED.values()), first=3)
    beside.set_title(f"MNIST at {MAIN:.0%}", loc="left", fontsize=10)
    _bars(moved, [[m[arm] for m in seeds] for arm in MOVED], list(MOVED.values()), first=1)
    moved.set_title("on 600 images of clothes", loc="left", fontsize=10)
    for axes in (over, beside, moved):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _bars(axes: Any, values: Sequence[Sequence[float]], labels: Sequence[str], first: int) -> None:
    """Bars of means, of which the ``first`` few are blue, and dots for seeds."""
    for row, each in enumerate(values):
        axes.barh(row, _mean(each), 0.7, color="#56b4e9" if row < first else "0.8")
        axes.plot(each, [row] * len(each), ".", color="0.25", markersize=4)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel("test accuracy, %")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
