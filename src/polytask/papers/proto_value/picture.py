"""Pictures: values on a map, and what the claims measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from polytask.claim import Measurements
from polytask.errors import InputError
from polytask.papers.proto_value.four_rooms import GAMMA, SETS
from polytask.papers.proto_value.tabular import Walk, leading, rooms, successor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RETURNS = {
    "sets 100": "100 sets",
    "sets 10": "10 sets",
    "sets 1": "1 set",
    "numbers": "100 random cumulants",
    "hash": "100 sets by hashing",
    "random encoder": "random encoder",
    "pixels": "pixels",
    "dqn": "DQN, end to end",
    "random": "random actions",
}


def value_maps(walk: Walk, values: Mapping[str, Tensor]) -> Figure:
    """A map for each title, of numbers ``(S,)`` by state; walls are grey. Those with both signs have white at 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.3 * len(values) + 0.4, 2.7), layout="constrained")
    for axes, (title, numbers) in zip(np.atleast_1d(figure.subplots(1, len(values))), values.items(), strict=True):
        _map(axes, walk, numbers)
        axes.set_title(title, fontsize=9, loc="left")
    return figure


def _map(axes: Axes, walk: Walk, numbers: Tensor) -> None:
    if walk.cells is None:
        raise InputError("a walk without cells, expected one on a map")
    height, width = (walk.cells.amax(0) + 2).tolist()
    grid = np.full((height, width), np.nan)
    grid[walk.cells[:, 0], walk.cells[:, 1]] = numbers.detach().double().numpy()
    largest = float(np.nanmax(np.abs(grid)))
    signed = float(np.nanmin(grid)) < 0
    axes.set_facecolor("0.75")
    axes.imshow(grid, cmap="RdBu_r" if signed else "Blues", vmin=-largest if signed else 0, vmax=largest)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Two proto-value functions; how far learned features are from them by the number of sets; returns. Dots are seeds."""
    from matplotlib.figure import Figure

    seeds = list(measurements.values())
    figure = Figure(figsize=(11.5, 3.3), layout="constrained")
    first, second, errors, returns = figure.subplots(1, 4, width_ratios=(0.8, 0.8, 1.1, 1.2))
    walk = rooms()
    vectors = leading(successor(walk.matrix, GAMMA), 6)
    for axes, column, title in ((first, 1, "2nd proto-value function"), (second, 5, "6th")):
        _map(axes, walk, vectors[:, column])
        axes.set_title(title, fontsize=10, loc="left")
    for m in SETS:
        found = [measured[f"sets {m} error"] for measured in seeds if f"sets {m} error" in measured]
        errors.plot([m] * len(found), found, ".", color="0.65", markersize=4)
        errors.plot(m, np.mean(found), "o", color="#0072b2", label="sets" if m == SETS[0] else None)
    for name, mark, colour, words in (
        ("rare 10", "s", "#56b4e9", "rare sets"),
        ("numbers 100", "D", "#d55e00", "random cumulants"),
        ("random", None, "0.35", "random features"),
    ):
        mean = float(np.mean([measured[f"{name} error"] for measured in seeds if f"{name} error" in measured]))
        if mark is None:
            errors.axhline(mean, color=colour, linewidth=1, linestyle="--", label=words)
        else:
            errors.plot(int(name.split()[-1]), mean, mark, color=colour, label=words)
    errors.set_xscale("log")
    errors.set_xticks(SETS, [str(m) for m in SETS])
    errors.minorticks_off()
    errors.set_ylim(0, 1)
    errors.set_xlabel("tasks")
    errors.set_title("four rooms: subspace error", fontsize=10, loc="left")
    errors.legend(frameon=False, fontsize=8)
    for row, name in enumerate(RETURNS):
        found = [measured[f"{name} return"] for measured in seeds if f"{name} return" in measured]
        returns.plot(found, [row] * len(found), ".", color="0.65", markersize=4)
        returns.plot(np.mean(found), row, "o", color="#0072b2" if name.startswith("sets") else "#d55e00")
    returns.set_yticks(range(len(RETURNS)), list(RETURNS.values()), fontsize=8)
    returns.set_ylim(len(RETURNS) - 0.5, -0.5)
    returns.set_xlim(left=0)
    returns.set_title("Breakout of MinAtar: return", fontsize=10, loc="left")
    for axes in (errors, returns):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
    return figure
