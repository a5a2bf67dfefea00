"""The picture of the claims: accuracy of each way, and what a task takes of each source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from polytask.claim import Measurements
from polytask.papers.scalearn.texts import RICH, SCARCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "encoder": "no adapter",
    "mean": "even mean of the adapters",
    "uniform++": "Uniform++",
    "uniform": "Uniform",
    "scalearn++": "ScaLearn++",
    "scalearn": "ScaLearn",
    "fusion": "AdapterFusion",
    "adapter": "own adapter",
    "joint": "joint adapter",
}

COLOURS = {"rating": "#0072b2", "entails": "#d55e00"}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Test accuracy on each scarce task, a dot for each seed, and the learnt coefficients of Uniform."""
    from matplotlib.figure import Figure

    runs = list(measurements.values())

    def mean(name: str) -> float:
        return sum(run[name] for run in runs) / len(runs)

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    *by_task, takes = figure.subplots(1, 3, width_ratios=[1, 1, 1.1])
    sizes = {method: mean(f"{method} parameters") if f"{method} parameters" in runs[0] else 0 for method in LABELS}
    for axes, task in zip(by_task, SCARCE, strict=True):
        for row, method in enumerate(LABELS):
            each = [run[f"{method} on {task}"] for run in runs]
            axes.plot(each, [row] * len(runs), "o", color=COLOURS[task], alpha=0.3, markersize=4, markeredgewidth=0)
            axes.plot([mean(f"{method} on {task}")] * 2, [row - 0.3, row + 0.3], color=COLOURS[task], linewidth=2.5)
        names = [f"{label} ({sizes[method]:,.0f})" for method, label in LABELS.items()]
        axes.set_yticks(range(len(LABELS)), names if axes is by_task[0] else [""] * len(LABELS))
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(f"accuracy on {task!r}, %", loc="left", fontsize=10)
    by_task[0].set_ylabel("numbers learnt for a task in brackets", color="0.4", fontsize=9)
    sources = (*SCARCE, *RICH)
    for i, task in enumerate(SCARCE):
        places = [place + 0.36 * (i - 0.5) for place in range(len(sources))]
        takes.bar(places, [mean(f"{task} takes {source}") for source in sources], 0.34, color=COLOURS[task], label=task)
    takes.axhline(2 / len(sources), color="0.5", linestyle="--", linewidth=1, label="at first")
    takes.set_xticks(range(len(sources)), sources)
    takes.set_title("coefficient of each source, Uniform", loc="left", fontsize=10)
    takes.legend(frameon=False, fontsize=8)
    for axes in (*by_task, takes):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
