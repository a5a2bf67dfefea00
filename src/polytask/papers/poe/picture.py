"""The picture of the claims: agreement with people on each rated set, of a few methods and of people themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from polytask.claim import Measurements
from polytask.papers.poe.dialogues import RATED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {
    "panel": ("panel, mean", "#0072b2", "o"),
    "expert": ("panel, the domain's expert", "#56b4e9", "D"),
    "pooled": ("one model for all", "#d55e00", "s"),
    "separate": ("one for each domain", "#e69f00", "^"),
    "cosine": ("cosine", "0.45", "x"),
    "length": ("length", "0.45", "+"),
    "human": ("one person", "black", "|"),
}
UNSEEN = {
    "panel unseen": ("panel, mean", "#0072b2", "o"),
    "pooled unseen": ("one model for all", "#d55e00", "s"),
    "panel few": ("panel, new expert on 32 exchanges", "#009e73", "D"),
    "pooled few": ("one model, trained on 32 exchanges", "#e69f00", "^"),
}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Spearman's correlation by set, the mean over seeds: of all domains, and where the set's domain was left out."""
    from matplotlib.figure import Figure

    runs = list(measurements.values())

    def mean(name: str) -> float:
        return sum(run[name] for run in runs) / len(runs)

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    seen, unseen = figure.subplots(1, 2)
    for axes, sets, looks, title in (
        (seen, list(RATED), LOOKS, "all domains (bar: the panel's 95 % interval over responses)"),
        (unseen, [name for name, domain in RATED.items() if domain], UNSEEN, "the set's domain left out of training"),
    ):
        for i, (method, (label, colour, marker)) in enumerate(looks.items()):
            rows = [row + 0.11 * (i - (len(looks) - 1) / 2) for row in range(len(sets))]
            found = [mean(f"{method} on {name}") for name in sets]
            size = 11 if marker == "|" else 6
            axes.plot(found, rows, marker, color=colour, label=label, markersize=size, markeredgewidth=1.5)
            if method == "panel":
                edges = [[mean(f"panel on {name}, {edge}") for name in sets] for edge in ("low", "high")]
                axes.hlines(rows, *edges, color=colour, linewidth=1)
        axes.axvline(0, color="0.8", linewidth=1, zorder=0)
        axes.set_yticks(range(len(sets)), sets)
        axes.invert_yaxis()
        axes.set_xlabel("Spearman's correlation with the mean rating")
        axes.set_title(title, loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
