"""The picture of the claims on turned digits: learning curves, learning rates, and the size of what is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from polytask.claim import Measurements
from polytask.papers.mip.rotated import FINAL_ANGLES, POINTS, RATES, STEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {
    "default": ("default", "#d55e00", "v"),
    "hyperfan": ("default, hyperfan start", "#cc79a7", "^"),
    "encoded": ("encoded input", "#e69f00", "D"),
    "residual": ("residual output", "#56b4e9", "s"),
    "mip": ("both: MIP", "#0072b2", "o"),
}
"""A label, a colour and a marker."""


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Test loss along the run, its mean for each learning rate of SGD, and ``|theta(gamma)|`` at the start."""
    from matplotlib.figure import Figure

    turned = [measured for measured in measurements.values() if "mip failed" in measured]

    def mean(name: str) -> float:
        return sum(measured[name] for measured in turned) / len(turned)

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    by_step, by_rate, by_gamma = figure.subplots(1, 3)
    steps = [i * STEPS // POINTS for i in range(POINTS + 1)]
    for method, (label, colour, marker) in LOOKS.items():
        look = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 2}
        points = [f"{method} sgd at {i}" for i in range(POINTS + 1)]
        for measured in turned:
            by_step.plot(steps, [measured[name] for name in points], color=colour, alpha=0.15, linewidth=1)
        by_step.plot(steps, [mean(name) for name in points], label=label, **look)
        by_rate.plot(RATES["sgd"], [mean(f"{method} area at {lr}") for lr in RATES["sgd"]], **look)
        by_gamma.plot(FINAL_ANGLES, [mean(f"{method} norm at {gamma}") for gamma in FINAL_ANGLES], **look)
    by_step.set_title("test loss, SGD with the chosen rate", loc="left", fontsize=10)
    by_step.set_xlabel("step")
    by_rate.set_title("its mean over the run, by learning rate", loc="left", fontsize=10)
    by_rate.set_xscale("log")
    by_rate.set_xticks(RATES["sgd"], [str(lr) for lr in RATES["sgd"]])
    by_rate.minorticks_off()
    by_rate.set_xlabel("learning rate of SGD")
    by_gamma.set_title("norm of the weights at the start / its mean", loc="left", fontsize=10)
    by_gamma.set_xlabel("gamma")
    for axes in (by_step, by_rate, by_gamma):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93")
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside lower center", ncols=len(LOOKS), frameon=False)
    return figure
