"""How comparisons of models are drawn: profiles down the layers, and a value for each pair of models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

if TYPE_CHECKING:
    from polytask.merge.comparison import Interference
    from polytask.merge.representation import Similarity

Array = np.ndarray[Any, np.dtype[Any]]

PAIRS, ALL, INK, MUTED, PALE = "#0072b2", "#d55e00", "#17202b", "#7b8591", "#e4e8ec"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKS = "os^vDPX*<>"
STYLE = {"text.parse_math": False, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}

ROW, MOST_ROWS = 0.17, 60
"""Inches for a layer, and layers for which there is room; where there are more, not all are named."""

SQUARE = 4.6
"""Inches of a picture of pairs, at most."""


def interference_figure(found: Interference) -> Figure:
    """Profiles of all layers above, the whole model's pairs below."""
    count, layers = len(found.names), list(found.layers)
    rows = max(1.6, 0.55 + ROW * min(len(layers), MOST_ROWS))
    squares = 0.7 + min(0.38 * count, SQUARE) if count > 1 else 0.0
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 0.9 + rows + squares), layout="constrained")
        figure.suptitle(_title(found), x=0.01, ha="left", fontsize=11)
        parts: Any = figure.subfigures(2, 1, height_ratios=[rows + 0.4, squares]) if count > 1 else [figure]
        _profiles(parts[0], found, layers)
        if count > 1:
            left, right = parts[1].subplots(1, 2)
            conflicts, cosine = 100 * found.whole.conflicts, found.whole.cosine
            _square(left, conflicts, found.names, "Opposite signs, % of what both keep", "Oranges", (0, 100))
            _square(right, cosine, found.names, "Cosine of the task vectors", "RdBu", (-1, 1))
    return figure


def similarity_figure(found: Similarity, against: str) -> Figure:
    """A line for each other model, from module to module."""
    modules, place = list(found.cka), found.names.index(against)
    others = [k for k in range(len(found.names)) if k != place]
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.1 + ROW * 1.4 * len(modules) + 0.19 * len(others)), layout="constrained")
        ax = figure.subplots()
        for number, k in enumerate(others):
            values = [float(cka[place, k]) for cka in found.cka.values()]
            colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
            ax.plot(
                values, range(len(modules)), color=colour, marker=mark, linewidth=1.2, markersize=4, label=found.names[k]
            )
        ax.set_yticks(range(len(modules)), [end_of(module, 40) for module in modules], fontsize=8)
        ax.set_ylim(len(modules) - 0.4, -0.6)
        ax.set_xlim(min(0.0, ax.get_xlim()[0]), 1.02)
        ax.set_title(f"Linear CKA with {middle_of(against, 40)}", fontsize=10, loc="left")
        ax.grid(axis="y", color=PALE, linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=min(len(others), 3), frameon=False, fontsize=8)
    return figure


def _title(found: Interference) -> str:
    models = f"{len(found.names)} model{'s' if len(found.names) > 1 else ''}"
    return f"Interference of {models}, each with the largest {100 * found.density:g} % of every tensor"


def _profiles(figure: Any, found: Interference, layers: Sequence[str]) -> None:
    count = len(found.names)
    parts = list(found.layers.values())
    signs, supports, angles, lost = figure.subplots(1, 4, sharey=True)
    _pairs(signs, [100 * part.conflicts for part in parts])
    _line(signs, [100 * part.conflict for part in parts], ALL)
    _axis(signs, "Opposite signs", "% of what both (blue) or any (orange) keep", 50.0)
    _pairs(supports, [100 * part.overlap for part in parts])
    _axis(supports, "Overlap of supports", "% of what either keeps", 100 * found.density / (2 - found.density))
    _pairs(angles, [part.cosine for part in parts])
    _axis(angles, "Cosine of task vectors", "", 0.0)
    _line(lost, [100 * part.cancelled for part in parts], ALL)
    _axis(lost, "Cancelled in the sum", "% of their lengths", 100 * (1 - count**-0.5))
    step = math.ceil(len(layers) / MOST_ROWS)
    signs.set_yticks(range(0, len(layers), step), [end_of(layer, 26) for layer in layers[::step]], fontsize=7.5)
    signs.set_ylim(len(layers) - 0.4, -0.6)
    handles: list[Any] = [Line2D([], [], color=ALL, marker="o", markersize=3, label="all models together")]
    if count > 1:
        pairs = "pairs of models: mean" if count > 2 else "the two models"
        handles.insert(0, Line2D([], [], color=PAIRS, marker="o", markersize=3, label=pairs))
    if count > 2:
        handles.insert(1, Patch(color=PAIRS, alpha=0.25, linewidth=0, label="lowest to highest"))
    handles.append(Line2D([], [], color=MUTED, linestyle=":", label="of unrelated task vectors"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _pairs(ax: Axes, matrices: Sequence[Array]) -> None:
    """The mean over pairs of models at each layer, and from the lowest to the highest."""
    values = [matrix[np.triu_indices(len(matrix), 1)] for matrix in matrices]
    known = [found[~np.isnan(found)] for found in values]
    some = [y for y, found in enumerate(known) if len(found)]
    ends = [[float(end(known[y])) for y in some] for end in (np.min, np.max)]
    ax.hlines(some, *ends, color=PAIRS, alpha=0.25, linewidth=4)
    _line(ax, [float(found.mean()) if len(found) else math.nan for found in known], PAIRS)


def _line(ax: Axes, values: Sequence[float], colour: str) -> None:
    ax.plot(values, range(len(values)), color=colour, linewidth=1.2, marker="o", markersize=3)


def _axis(ax: Axes, title: str, label: str, unrelated: float) -> None:
    ax.axvline(unrelated, color=MUTED, linestyle=":", linewidth=1.2, zorder=0)
    low, high = ax.get_xlim()
    if "%" in label:
        ax.set_xlim(0, min(max(high, 1.1 * unrelated), 102))
    else:
        ax.set_xlim(min(low, -0.05), max(high, 0.05))
    ax.set_title(title, fontsize=9.5, loc="left")
    ax.set_xlabel(label, fontsize=8, color=MUTED)
    ax.tick_params(labelsize=7.5, length=2)
    ax.grid(axis="y", color=PALE, linewidth=0.6)


def _square(ax: Axes, values: Array, names: Sequence[str], title: str, colours: str, limits: tuple[float, float]) -> None:
    """A value for each pair of models, whose names stand at the left, by numbers above."""
    count = len(names)
    grid = np.where(np.eye(count, dtype=bool), np.nan, values)
    image = ax.imshow(np.ma.masked_invalid(grid), cmap=colours, vmin=limits[0], vmax=limits[1])
    ax.set_facecolor(PALE)
    for i, j in zip(*np.nonzero(~np.isnan(grid)), strict=True):
        red, green, blue, _ = image.cmap(image.norm(grid[i, j]))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        shown = f"{grid[i, j]:.0f}" if limits[1] > 1 else f"{grid[i, j]:.2f}".replace("0.", ".").replace("-", "−")
        size = 8 if count <= 12 else 96 / count
        ax.text(j, i, shown, ha="center", va="center", fontsize=size, color="white" if dark else INK)
    numbers = [str(k) for k in range(1, count + 1)]
    ax.set_xticks(range(count), numbers, fontsize=8)
    labels = [k if name == k else f"{middle_of(name, 28)}  {k}" for k, name in zip(numbers, names, strict=True)]
    ax.set_yticks(range(count), labels, fontsize=8)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=9.5, loc="left")


def end_of(name: str, most: int) -> str:
    """A long name's end, by which layers differ."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def middle_of(name: str, most: int) -> str:
    """A long name without its middle."""
    tail = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - tail]}…{name[-tail:]}"
