"""The claims on experts for handwritten digits and printed letters, six tasks of which MNIST is one of the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from polytask.claim import Measurements
from polytask.papers._experts.glyphs import FILES, glyph_experts
from polytask.papers.tall_masks.comparison import study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILES", "measure", "plot"]


def measure(seed: int, data: Path) -> Measurements:
    """What `study` finds on the experts of a seed."""
    return study(glyph_experts(data, seed))


METHODS = {
    "base": ("base", "0.6", "v"),
    "consensus": ("consensus, one model", "#009e73", "s"),
    "magnitude": ("masks by magnitude", "#d55e00", "^"),
    "tall": ("TALL-masks", "#0072b2", "o"),
    "individual": ("experts", "black", "D"),
}
"""What the first panel shows: a label, a colour and a marker."""


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Accuracy by task; how many tasks need a weight; and what one merged model gains when k tasks must need its weights."""
    from matplotlib.figure import Figure

    some = next(iter(measurements.values()))
    tasks = [name.removeprefix("base on ") for name in some if name.startswith("base on ")]

    def values(name: str) -> list[float]:
        return [measured[name] for measured in measurements.values()]

    def mean(name: str) -> float:
        return sum(values(name)) / len(measurements)

    figure = Figure(figsize=(11, 4), layout="constrained")
    by_task, by_count, by_k = figure.subplots(1, 3, width_ratios=[1.6, 1, 1.1])
    for row, task in enumerate(tasks):
        for nth, (method, (label, colour, marker)) in enumerate(METHODS.items()):
            name, height = f"{method} on {task}", row + 0.13 * (nth - 2)
            by_task.plot([min(values(name)), max(values(name))], [height] * 2, color=colour, alpha=0.35, linewidth=2)
            by_task.plot(mean(name), height, marker, color=colour, markersize=5, label=label if row == 0 else None)
    by_task.set_yticks(range(len(tasks)), tasks)
    by_task.set_ylim(len(tasks) - 0.5, -0.5)
    by_task.grid(axis="x", color="0.92")
    by_task.set_xlabel("test accuracy, % (bar: all seeds)")
    by_task.set_title("accuracy by task", loc="left", fontsize=10)

    counts = range(len(tasks) + 1)
    colours = ["#d55e00", "#e69f00", *["#0072b2"] * (len(counts) - 2)]
    by_count.bar(counts, [mean(f"used by {count}") for count in counts], color=colours)
    for count, word in ((0, "catastrophic"), (1, "selfish")):
        place = (count, mean(f"used by {count}") + 0.5)
        by_count.annotate(word, place, ha="center", va="bottom", fontsize=8, rotation=90, color=colours[count])
    by_count.set_ylim(0, 1.35 * max(mean(f"used by {count}") for count in counts))
    by_count.set_xticks(counts)
    by_count.set_xlabel("tasks that need a weight")
    by_count.set_title("share of the weights, %", loc="left", fontsize=10)

    ks = sorted(int(name.removeprefix("k = ")) for name in some if name.startswith("k = ") and name[4:].isdigit())
    gains = [[measured[f"k = {k}"] - measured["k = 0"] for k in ks] for measured in measurements.values()]
    by_k.axhline(0, color="0.8", linewidth=1)
    for gain in gains:
        by_k.plot(range(len(ks)), gain, color="#009e73", alpha=0.25, linewidth=1)
    average = [sum(each) / len(gains) for each in zip(*gains, strict=True)]
    by_k.plot(range(len(ks)), average, color="#009e73", marker="s", linewidth=2.5)
    by_k.set_xticks(range(len(ks)), [str(k) for k in ks])
    by_k.set_xlabel("k, tasks that must need a weight")
    by_k.set_ylabel("% of the experts' accuracy")
    by_k.set_title("one model, less task arithmetic", loc="left", fontsize=10)

    for axes in (by_task, by_count, by_k):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*by_task.get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), frameon=False)
    return figure
