"""The picture of the claims: magnetisations over dilution, overlaps over what examples leave unknown, and the phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from polytask.claim import Measurements
from polytask.papers.multitask_hebbian.digits import DILUTIONS, PATTERNS
from polytask.papers.multitask_hebbian.digits import EXAMPLES as DIGITS_EXAMPLES
from polytask.papers.multitask_hebbian.mean_field import critical_dilution, evenness, phase_diagram
from polytask.papers.multitask_hebbian.patterns import dataset_entropy, one_step_overlap
from polytask.papers.multitask_hebbian.synthetic import EXAMPLES, QUALITY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#d55e00")
MARKS = {"supervised": ("o", "with a teacher"), "unsupervised": ("x", "without")}


def plot(measurements: Mapping[int, Measurements]) -> Figure:
    """Means over seeds, beside the theory's lines; the third panel is theory alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.9), layout="constrained")
    amplitudes, overlaps, phases = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    _amplitudes(amplitudes, measurements)
    _overlaps(overlaps, measurements)
    _phases(figure, phases)
    for axes in (amplitudes, overlaps):
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _mean(measurements: Mapping[int, Measurements], name: str) -> float:
    return float(np.mean([measured[name] for measured in measurements.values() if name in measured]))


def _amplitudes(axes: Any, measurements: Mapping[int, Measurements]) -> None:
    dilutions = np.linspace(0, 0.9, 181)
    theory = phase_diagram(PATTERNS, dilutions.tolist(), [0.0])[:, 0]
    for k, colour in enumerate(COLOURS):
        axes.plot(dilutions, theory[:, k], color=colour, linewidth=1.2, label=f"pattern {k + 1}, theory")
        for name, (mark, _) in MARKS.items():
            found = [_mean(measurements, f"{name} m{k + 1} at {dilution}") for dilution in DILUTIONS]
            axes.plot(DILUTIONS, found, mark, color=colour, markersize=6, fillstyle="none")
    axes.set_xlabel("part of each pattern that is blank")
    axes.set_title("digits: magnetisation of each pattern", fontsize=10, loc="left")


def _overlaps(axes: Any, measurements: Mapping[int, Measurements]) -> None:
    entropies = np.geomspace(0.01, 4, 100)
    axes.plot(entropies, [one_step_overlap(float(rho)) for rho in entropies], color="0.35", label="theory")
    quality = _mean(measurements, "quality")
    sources = (
        ("drawn patterns", "#0072b2", "{} overlap with {} drawn", EXAMPLES, QUALITY),
        ("digits", "#d55e00", "{} overlap at {}", DIGITS_EXAMPLES, quality),
    )
    for title, colour, form, counts, r in sources:
        for name, (mark, words) in MARKS.items():
            found = [_mean(measurements, form.format(name, count)) for count in counts]
            rho = [dataset_entropy(r, count) for count in counts]
            axes.plot(rho, found, mark, color=colour, markersize=6, fillstyle="none", label=f"{title}, {words}")
    axes.set_xscale("log")
    axes.set_xlabel("dataset entropy")
    axes.set_title("overlap one step after the pattern", fontsize=10, loc="left")


def _phases(figure: Figure, axes: Any) -> None:
    dilutions, temperatures = torch.linspace(0, 0.98, 50).tolist(), torch.linspace(0, 1, 51).tolist()
    even = evenness(phase_diagram(PATTERNS, dilutions, temperatures)).clamp(min=0)
    image = axes.pcolormesh(dilutions, temperatures, even.T.numpy(), cmap="viridis", vmin=0, vmax=1, rasterized=True)
    figure.colorbar(image, ax=axes, label="smallest over largest magnetisation")
    axes.plot([0, 1], [1, 0], color="0.35", linewidth=1)
    axes.text(0.58, 0.62, "no pattern is retrieved", color="0.35", fontsize=9)
    axes.plot([critical_dilution(PATTERNS)] * 2, [0, 0.035], color="#d55e00", linewidth=2.5, clip_on=False)
    axes.annotate(
        "at zero temperature\nthe hierarchy is\nstable up to here",
        (critical_dilution(PATTERNS), 0.03),
        (0.97, 0.44),
        color="#d55e00",
        fontsize=8,
        ha="right",
        arrowprops={"arrowstyle": "-", "color": "#d55e00", "linewidth": 0.8},
    )
    axes.set_xlim(0, 0.98)
    axes.set_ylim(0, 1)
    axes.set_xlabel("part of each pattern that is blank")
    axes.set_ylabel("temperature")
    axes.set_title(f"{PATTERNS} patterns, infinite network: one, a few, all", fontsize=10, loc="left")
