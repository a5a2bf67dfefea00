"""The claims on experts of six tasks of digits and letters: `polytask.papers._experts.glyphs` says what they are.

Whatever has settings has them from validation data: the scale of every merged task vector from `SCALES`, and beside it the
density of TIES, or the ratio of PCB, from three values. So an ablation has what the whole has. The searches for multipliers
begin at the settings that were found, and have 60 evaluations each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polytask.claim import Measurements
from polytask.merge import PCB, TIES, Average, TaskArithmetic, merge_state_dicts
from polytask.merge.searching import Range, search
from polytask.papers._experts import Experts, added, delta
from polytask.papers._experts.glyphs import FILES, glyph_experts
from polytask.papers.pcb_merging.ablation import compete
from polytask.papers.pcb_merging.multipliers import search_multipliers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILES", "compare", "measure", "plot"]

SCALES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0)
RATIOS = (0.05, 0.1, 0.2)
DENSITIES = (0.1, 0.2, 0.3)
BUDGET = 60
BOUNDS = (0.8, 1.3)

Weights = dict[str, Tensor]


def measure(seed: int, data: Path) -> Measurements:
    """What `compare` measures on the experts of a seed."""
    return compare(glyph_experts(data, seed), seed)


def compare(experts: Experts, seed: int) -> Measurements:
    """Mean test accuracy over tasks of every method, in percent, at the settings that are best in validation.

    ``"pcb scale"`` and the like are what was chosen; ``"pcb at 0.1"`` and the like are for the plot, the test accuracy along
    the scales with the other setting as chosen.
    """
    base, models = experts.base, experts.models
    measured = {"base": experts.mean(base), "average": experts.mean(merge_state_dicts(Average(), models))}
    measured["individual"] = sum(experts.individual().values()) / len(models)

    def validated(weights: Weights) -> float:
        return experts.mean(weights, "validation")

    def tuned(name: str, deltas: Iterable[tuple[float, Weights]]) -> tuple[float, float]:
        """Measure the best of ``deltas``, by setting, at its best scale; these two."""
        best, chosen = -1.0, (0.0, 0.0, dict[str, Tensor]())
        for setting, vector in deltas:
            found = search(lambda s: validated(added(base, vector, s["scale"])), {"scale": SCALES})  # noqa: B023, called now
            if found.score > best:
                best, chosen = found.score, (setting, found.best["scale"], vector)
        setting, scale, vector = chosen
        measured[name], measured[f"{name} scale"] = experts.mean(added(base, vector, scale)), scale
        if name in CURVES:
            measured.update({f"{name} at {s:g}": experts.mean(added(base, vector, s)) for s in SCALES})
        return setting, scale

    _, arithmetic = tuned("task arithmetic", [(0.0, delta(TaskArithmetic(scale=1.0), models, base))])
    measured["task arithmetic 0.3"] = measured["task arithmetic at 0.3"]
    tuned("ties", ((density, delta(TIES(density=density), models, base)) for density in DENSITIES))
    ratio, scale = tuned("pcb", ((ratio, delta(PCB(ratio=ratio), models, base)) for ratio in RATIOS))
    measured["pcb ratio"], measured["pcb 1"] = ratio, experts.mean(merge_state_dicts(PCB(), models, base))
    for agreement in ("normalized_sum", "pairs"):
        tuned(f"pcb {agreement}", ((r, delta(PCB(ratio=r, agreement=agreement), models, base)) for r in RATIOS))

    flat = torch.stack([torch.cat([vector[name].flatten() for name in base]) for vector in experts.vectors])
    for step in ("intra", "inter", "rescale"):
        tuned(f"without {step}", ((r, unflat(compete(flat, r, without=step), base)) for r in RATIOS))

    rule, (low, high) = PCB(ratio=ratio, scale=scale), BOUNDS
    found = search_multipliers(validated, models, base, rule, low=low, high=high, budget=BUDGET, seed=seed)
    measured["pcb es"] = experts.mean(merge_state_dicts(rule.but(weight=found.best["weight"]), models, base))
    plain = TaskArithmetic(scale=arithmetic)
    found = search(
        lambda s: validated(merge_state_dicts(plain.but(**s), models, base)),
        {"weight": Range(low, high, count=len(models))},
        budget=BUDGET,
        start={"weight": [1.0] * len(models)},
        seed=seed,
    )
    measured["task arithmetic es"] = experts.mean(merge_state_dicts(plain.but(**found.best), models, base))
    return measured


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> Weights:
    """A vector's values in the shapes of ``like``, in its order."""
    pieces = torch.split(vector, [tensor.numel() for tensor in like.values()])
    return {name: piece.view_as(like[name]) for name, piece in zip(like, pieces, strict=True)}


CURVES = {"task arithmetic": "#d55e00", "ties": "#0072b2", "pcb": "#009e73"}
"""The methods of which a curve is drawn, and their colours."""

LABELS = {
    "base": "base",
    "average": "average",
    "task arithmetic": "task arithmetic",
    "task arithmetic es": "  + search",
    "ties": "TIES",
    "without inter": "PCB without inter",
    "without intra": "PCB without intra",
    "without rescale": "PCB without rescale",
    "pcb": "PCB",
    "pcb es": "  + search",
}
"""The rows of the plot."""


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Test accuracy of each method, a dot for each seed and a line at their mean; and along the scale of the task vector."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))

    def mean(what: str) -> float:
        return sum(m[what] for m in measurements.values()) / len(measurements)

    for row, name in enumerate(LABELS):
        colour = next((c for method, c in CURVES.items() if name in (method, f"{method} es")), "0.45")
        left.plot([m[name] for m in measurements.values()], [row] * len(measurements), "o", color=colour, alpha=0.35, ms=5)
        left.plot(mean(name), row, marker="|", color=colour, markersize=16, markeredgewidth=2.5)
        left.annotate(f"{mean(name):.1f}", (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    left.set_yticks(range(len(LABELS)), list(LABELS.values()), fontsize=9)
    left.set_ylim(len(LABELS) - 0.5, -0.5)
    left.set_title(f"mean test accuracy (%); experts have {mean('individual'):.1f}", fontsize=10, loc="left")
    for name, colour in CURVES.items():
        right.plot(SCALES, [mean(f"{name} at {scale:g}") for scale in SCALES], color=colour, marker=".", label=LABELS[name])
    right.axhline(mean("base"), color="0.6", linewidth=1, linestyle=":", label="base")
    right.set_xscale("log")
    right.set_xticks(ticks := [0.02, 0.1, 0.3, 1, 2], [f"{tick:g}" for tick in ticks])
    right.set_xticks([], minor=True)
    right.set_xlabel("scale of the merged task vector")
    right.set_title("test accuracy along the scale (%)", fontsize=10, loc="left")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
