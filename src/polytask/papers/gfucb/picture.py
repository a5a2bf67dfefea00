"""The picture of the claims: regret of bandits over rounds, and of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Cumulative regret per task over rounds, at the end, of episodes; lines and large dots are means, small dots seeds."""
    from matplotlib.figure import Figure

    arms = {
        "pixels": ("#e69f00", "LinUCB on pixels, each task"),
        "independent": ("#d55e00", "a network for each task"),
        "joint of 4": ("#56b4e9", "GFUCB, 4 tasks"),
        "joint": ("#0072b2", "GFUCB, 10 tasks"),
        "greedy": ("#009e73", "10 tasks, greedy"),
        "oracle": ("0.4", "LinUCB on true classes"),
    }
    seeds = list(measurements.values())
    figure = Figure(figsize=(11.5, 3.8), layout="constrained")
    curves, ends, episodes = figure.subplots(1, 3, width_ratios=(1.3, 1, 0.75))
    for row, (name, (colour, _)) in enumerate(arms.items()):
        prefix = f"{name} at "
        times = sorted(int(key.removeprefix(prefix)) for key in seeds[0] if key.startswith(prefix))
        means = [sum(measured[f"{prefix}{t}"] for measured in seeds) / len(seeds) for t in times]
        curves.plot([0, *times], [0, *means], color=colour, linewidth=1.6)
        values = [measured[f"{name} regret"] for measured in seeds]
        ends.plot(values, [row] * len(values), ".", color="0.65", markersize=5)
        ends.plot(sum(values) / len(values), row, "o", color=colour, markersize=8)
    horizons = {"independent": "each task", "joint": "5 tasks", "known": "known"}
    for row, (name, colour) in enumerate(zip(horizons, ("#d55e00", "#0072b2", "0.4"), strict=True)):
        values = [measured[f"episodes {name}"] for measured in seeds]
        episodes.plot(values, [row] * len(values), ".", color="0.65", markersize=5)
        episodes.plot(sum(values) / len(values), row, "o", color=colour, markersize=8)
    curves.set_xlabel("rounds")
    curves.set_title("cumulative regret per task", loc="left", fontsize=10)
    ends.set_yticks(range(len(arms)), [label for _, label in arms.values()])
    ends.set_ylim(len(arms) - 0.5, -0.5)
    ends.set_xlim(left=0)
    ends.set_title("at the end", loc="left", fontsize=10)
    episodes.set_yticks(range(len(horizons)), list(horizons.values()))
    episodes.set_ylim(len(horizons) - 0.5, -0.5)
    episodes.set_xlim(left=0)
    episodes.set_title("episodes of four steps", loc="left", fontsize=10)
    for axes in (curves, ends, episodes):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
