"""The picture of the claims: accuracy by what is learnt for a task, and what a task takes of each source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from polytask.claim import Measurements
from polytask.papers.scalearn.texts import RICH, SCARCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "uniform++": "Uniform++",
    "uniform": "Uniform",
    "scalearn++": "ScaLearn++",
    "scalearn": "ScaLearn",
    "adapter": "own adapter",
    "joint": "joint adapter",
    "fusion": "AdapterFusion",
}
SIDES = {
    "scalearn++": ((-7, -3), "right"),
    "adapter": ((0, 7), "center"),
    "fusion": ((5, -14), "right"),
}
"""Where a label stands that is not to the right of its point: the offset in points, and how it is aligned."""

COLOURS = {"rating": "#0072b2", "entails": "#d55e00"}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Test accuracy on each scarce task by the parameters that a method learns, and the learnt coefficients of Uniform."""
    from matplotlib.figure import Figure

    runs = list(measurements.values())

    def mean(name: str) -> float:
        return sum(run[name] for run in runs) / len(runs)

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    *by_size, takes = figure.subplots(1, 3)
    for axes, task in zip(by_size, SCARCE, strict=True):
        for fixed, label, style in (("mean", "even mean of the adapters", "--"), ("encoder", "no adapter", ":")):
            axes.axhline(mean(f"{fixed} on {task}"), color="0.5", linestyle=style, linewidth=1, label=label)
        for method, label in LABELS.items():
            size, level = mean(f"{method} parameters"), mean(f"{method} on {task}")
            each = [run[f"{method} on {task}"] for run in runs]
            axes.plot([size] * len(runs), each, "o", color=COLOURS[task], alpha=0.25, markersize=3)
            axes.plot(size, level, "o", color=COLOURS[task], markersize=7)
            away, side = SIDES.get(method, ((7, -3), "left"))
            axes.annotate(label, (size, level), away, textcoords="offset points", fontsize=8, ha=side)
        axes.set_xscale("log")
        axes.set_xlim(2, 4e6)
        axes.set_xlabel("parameters learnt for the task")
        axes.set_title(f"accuracy on {task!r}, %", loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    sources = (*SCARCE, *RICH)
    for i, task in enumerate(SCARCE):
        places = [place + 0.36 * (i - 0.5) for place in range(len(sources))]
        takes.bar(places, [mean(f"{task} takes {source}") for source in sources], 0.34, color=COLOURS[task], label=task)
    takes.axhline(2 / len(sources), color="0.5", linestyle="--", linewidth=1, label="at first")
    takes.set_xticks(range(len(sources)), sources)
    takes.set_title("coefficient of each source, Uniform", loc="left", fontsize=10)
    takes.legend(frameon=False, fontsize=8)
    for axes in (*by_size, takes):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
