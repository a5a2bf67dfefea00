"""The claims on experts that join a merge one after the other, whose settings were chosen when there were two.

Six experts (`polytask.papers._experts.glyphs`) come in three orders, drawn by the seed, in which each is once among the
first two. A method chooses its settings on validation images of the first two tasks, and keeps them (``frozen``) for the
merges of the first 2, 3, ... 6 experts; or it chooses anew for each merge, on validation images of its tasks (``retuned``).
All choose from the same scales, and rules that trim from the same densities; breadcrumbs has two shares of outliers to
choose from besides. Reported is the accuracy on test images over that of each task's own expert, in percent: the mean over
the tasks of a merge, and over the orders.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polytask.claim import Measurements
from polytask.merge import DARE, TIES, Breadcrumbs, Rule, TaskArithmetic
from polytask.papers._experts import Experts, delta
from polytask.papers._experts.experts import Weights
from polytask.papers._experts.glyphs import FILES, glyph_experts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILES", "grow", "measure", "plot"]

SCALES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.4)
PATIENCE = 3
"""Scales are tried from the smallest on, until so many in a row were no better than the best."""

DENSITIES = (0.05, 0.1, 0.2, 0.4)
OUTLIERS = (0.01, 0.05)
IMAGES = 400
"""Validation images of each task, of which settings are chosen."""

ORDERS = 3

METHODS: dict[str, list[Rule]] = {
    "breadcrumbs": [Breadcrumbs(density, gamma, scale=1) for density in DENSITIES for gamma in OUTLIERS],
    "task arithmetic": [TaskArithmetic(scale=1)],
    "ties": [TIES(density) for density in DENSITIES],
}
ABLATIONS: dict[str, list[Rule]] = {
    "largest": [Breadcrumbs(density, 0, scale=1) for density in DENSITIES],
    "random": [DARE(density, merge_by="sum") for density in DENSITIES],
}
"""Masks of the same densities without a band: with the outliers, and drawn at random (scaled up, as DARE does)."""


@dataclass(frozen=True)
class Chosen:
    """A rule and a scale that did best in validation, the first of equal ones."""

    rule: Rule
    scale: float
    score: float


class Bench:
    """Merges of some of the experts, measured on their tasks.

    Args:
        experts: the experts.
        images: validation examples of each task of which settings are chosen.
    """

    def __init__(self, experts: Experts, images: int = IMAGES) -> None:
        self.experts = experts
        few = {task: experts.data[task].validation[:images] for task in experts.tasks}
        self.few = {task: (inputs, targets[task]) for task, (inputs, targets) in few.items()}
        self.own = {task: self._right(experts.experts[task], task) for task in experts.tasks}
        self.individual = experts.individual()

    def delta(self, rule: Rule, tasks: Sequence[str]) -> Weights:
        """What merging these tasks' experts by a rule adds to the base."""
        return delta(rule, [self.experts.experts[task] for task in tasks], self.experts.base)

    def at(self, delta: Weights, scale: float) -> Weights:
        return {name: theta.add(delta[name], alpha=scale) for name, theta in self.experts.base.items()}

    def choose(self, rules: Sequence[Rule], tasks: Sequence[str]) -> Chosen:
        """The rule and the scale that are best on the validation examples of these tasks."""
        best: list[Chosen] = []
        for rule in rules:
            delta = self.delta(rule, tasks)
            tried: list[Chosen] = []
            for scale in SCALES:
                weights = self.at(delta, scale)
                scores = [self._right(weights, task) / self.own[task] for task in tasks]
                tried.append(Chosen(rule, scale, sum(scores) / len(scores)))
                if max(tried, key=_score) not in tried[-PATIENCE:]:
                    break
            best.append(max(tried, key=_score))
        return max(best, key=_score)

    def test(self, chosen: Chosen, tasks: Sequence[str]) -> float:
        """The mean accuracy on test examples over that of each task's own expert, in percent."""
        weights = self.at(self.delta(chosen.rule, tasks), chosen.scale)
        scores = [100 * self.experts.accuracy(weights, task) / self.individual[task] for task in tasks]
        return sum(scores) / len(scores)

    def _right(self, weights: Weights, task: str) -> float:
        inputs, labels = self.few[task]
        return float((self.experts.logits(weights, task, inputs, batch_size=512).argmax(1) == labels).float().mean())


def _score(chosen: Chosen) -> float:
    return chosen.score


def measure(seed: int, data: Path) -> dict[str, float]:
    """See `grow`, with the experts on glyphs of this seed."""
    return grow(glyph_experts(data, seed), seed)


def grow(experts: Experts, seed: int) -> dict[str, float]:
    """For each method and each number of experts what is reached with settings that are frozen, and with retuned ones.

    ``"METHOD frozen N"`` and ``"METHOD retuned N"`` are means over the orders; without ``N`` they are means over merges of
    three experts and more, and ``"METHOD gap"`` is their difference. ``"METHOD scale N"`` and ``"METHOD
    density N"`` are what retuning chose. Of the `ABLATIONS` there is the merge of all experts, retuned.
    """
    bench = Bench(experts)
    tasks = random.Random(seed).sample(experts.tasks, len(experts.tasks))
    step = len(tasks) // ORDERS
    orders = [tasks[i * step :] + tasks[: i * step] for i in range(ORDERS)]
    sizes = range(2, len(tasks) + 1)
    measured: dict[str, float] = {}
    for method, rules in METHODS.items():
        best: dict[tuple[str, ...], Chosen] = {}
        for size in sizes:
            found: list[tuple[float, float, float, float]] = []
            for order in orders:
                first, now = (tuple(sorted(order[:count])) for count in (2, size))
                if now not in best:
                    best[now] = bench.choose(rules, now)
                chosen = best[now]
                found.append((bench.test(best[first], now), bench.test(chosen, now), chosen.scale, density(chosen.rule)))
            for what, values in zip(("frozen", "retuned", "scale", "density"), zip(*found, strict=True), strict=True):
                measured[f"{method} {what} {size}"] = sum(values) / len(values)
        for what in ("frozen", "retuned"):
            later = [measured[f"{method} {what} {size}"] for size in sizes if size > 2]
            measured[f"{method} {what}"] = sum(later) / len(later)
        measured[f"{method} gap"] = measured[f"{method} retuned"] - measured[f"{method} frozen"]
    for method, rules in ABLATIONS.items():
        chosen = bench.choose(rules, tasks)
        ends = {"retuned": bench.test(chosen, tasks), "scale": chosen.scale, "density": density(chosen.rule)}
        measured |= {f"{method} {what} {len(tasks)}": value for what, value in ends.items()}
    return measured


def density(rule: Rule) -> float:
    """What a rule keeps of each task vector."""
    return float(getattr(rule, "density", 1.0))


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Against the number of merged experts: accuracy with frozen settings, what retuning adds, and the scale it chooses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.5), layout="constrained")
    reached, gap, scale = figure.subplots(1, 3)
    sizes = sorted({int(name.split()[-1]) for m in measurements.values() for name in m if "frozen " in name})
    for (method, colour), mark in zip(COLOURS.items(), "os^", strict=True):
        frozen, retuned, scales = (
            [[m[f"{method} {what} {size}"] for size in sizes] for m in measurements.values()]
            for what in ("frozen", "retuned", "scale")
        )
        line = {"color": colour, "marker": mark, "markersize": 4.5, "linewidth": 2}
        reached.plot(sizes, _means(frozen), label=method, **line)
        gaps = [[r - f for r, f in zip(*pair, strict=True)] for pair in zip(retuned, frozen, strict=True)]
        for each in gaps:
            gap.plot(sizes, each, color=colour, alpha=0.25, linewidth=1)
        gap.plot(sizes, _means(gaps), **line)
        scale.plot(sizes, _means(scales), **line)
    gap.axhline(0, color="#7b8591", linewidth=0.8, zorder=0)
    titles = ("settings of two kept (% of experts)", "what retuning adds (points)", "scale that retuning chooses")
    for axes, title in zip((reached, gap, scale), titles, strict=True):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xticks(sizes)
        axes.set_xlabel("merged experts")
        axes.spines[["top", "right"]].set_visible(False)
    scale.set_ylim(bottom=0)
    figure.legend(*reached.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


COLOURS = {"breadcrumbs": "#0072b2", "task arithmetic": "#d55e00", "ties": "#009e73"}


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]
