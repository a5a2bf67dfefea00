"""The picture of the claims: how far each curriculum came, its time constants, what it forgot, what it bears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polytask.claim import Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = {
    "cumulative": ("#0072b2", "all so far"),
    "sliding": ("#56b4e9", "window of 3"),
    "single": ("#d55e00", "one at a time"),
}
DAMAGE = {
    "ablated": "neurons\nremoved",
    "perturbed": "weights\ndisturbed",
    "retrained": "then\nretrained",
    "probed": "new\nreadout",
}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Parity. Thin lines and dots are seeds, bars are means."""
    from matplotlib.figure import Figure

    seeds = list(measurements.values())
    figure = Figure(figsize=(13, 3.7), layout="constrained")
    progress, taus, old, damage = figure.subplots(1, 4, width_ratios=(1.1, 1, 1, 1.15))
    for name, (colour, label) in ARMS.items():
        for i, measured in enumerate(seeds):
            shown = label if i == 0 else None
            progress.plot(*_points(measured, f"parity {name} at "), color=colour, linewidth=1.2, alpha=0.8, label=shown)
            taus.plot(*_points(measured, f"parity {name} tau "), ".-", color=colour, linewidth=1, alpha=0.8)
            if name != "sliding":
                old.plot(*_points(measured, f"{name} old "), "o-", color=colour, markersize=4, linewidth=0.8, alpha=0.8)
    progress.legend(frameon=False, fontsize=9)
    progress.set_xlabel("updates")
    progress.set_title("the newest N in training", loc="left", fontsize=10)
    taus.axhline(1, color="0.8", linewidth=1, zorder=0)
    taus.set_xlabel("N, when it was solved")
    taus.set_title("mean trained time constant", loc="left", fontsize=10)
    old.axhline(0, color="0.8", linewidth=1, zorder=0)
    old.set_xlabel("N, older than the newest")
    old.set_title("accuracy above chance", loc="left", fontsize=10)
    _damage(damage, seeds)
    for axes in (progress, taus, old):
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (progress, taus, old, damage):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _points(measured: Measurements, prefix: str) -> tuple[list[int], list[float]]:
    found = {int(name.removeprefix(prefix)): value for name, value in measured.items() if name.startswith(prefix)}
    return sorted(found), [found[n] for n in sorted(found)]


def _damage(axes: Any, seeds: Sequence[Measurements]) -> None:
    for shift, name in ((-0.2, "cumulative"), (0.2, "single")):
        for place, what in enumerate(DAMAGE):
            values = [measured[f"{name} {what}"] for measured in seeds]
            axes.bar(place + shift, sum(values) / len(values), 0.36, color=ARMS[name][0], alpha=0.85)
            axes.plot([place + shift] * len(values), values, ".", color="0.2", markersize=4)
    axes.set_xticks(range(len(DAMAGE)), list(DAMAGE.values()), fontsize=8)
    axes.set_ylim(40, 102)
    axes.set_title("accuracy, %: newest N, then the next", loc="left", fontsize=10)
