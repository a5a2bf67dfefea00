"""The results as one picture for a README or a slide: the methods, and which task helps which."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from polytask.files import replacing
from polytask.report import plots, view, words
from polytask.report.figures import label
from polytask.report.palette import LIGHT
from polytask.report.svg import figure
from polytask.report.view import Results

WIDTH, MARGIN, ROW, GAP = 1040, 28, 27, 56
"""Pixels at a scale of 1: the picture, its margin, a row of the forest plot, and between the two parts."""
MARKS = "▲ better, ▼ worse, ● or · undecided, at 5 % after correction for the number of methods or pairs"
MOST_TASKS = 8
"""With more tasks the transfer matrix is left out: its numbers would be too small to read."""


def picture(results: Results, path: Path | str, scale: float = 2.0) -> None:
    """Write ``results`` as a PNG, ``1040 * scale`` pixels wide: delta_m of each method beside the transfer between tasks."""
    view.check(results)
    rows = view.joint(results)
    transfer = results["transfer"]
    if transfer is not None and len(transfer["tasks"]) > MOST_TASKS:
        transfer = None
    with figure(WIDTH, 1) as drawn:
        lines = [line for sentence in results["summary"][-1:] for line in textwrap.wrap(words.sentence(sentence), 136)]
        cell = 52 if transfer else 0
        body = max(ROW * len(rows), cell * len(transfer["tasks"]) if transfer else 0)
        top = MARGIN + 34 + 20 * len(lines) + 44
        height = top + body + 74
        drawn.set_size_inches(WIDTH / 72, height / 72)
        drawn.set_facecolor(LIGHT["page"])
        _text(drawn, MARGIN, MARGIN, f"{words.shorten(results['data']['name'], 60)}: together or apart?", 19, "ink", "bold")
        for i, line in enumerate(lines):
            _text(drawn, MARGIN, MARGIN + 36 + 20 * i, line, 13, "ink")
        square = max(300, 84 + cell * len(transfer["tasks"])) if transfer else 0
        right = WIDTH - MARGIN - (square + GAP if transfer else 0)
        _text(drawn, MARGIN, top - 26, "delta_m against one model for each task, 95 % intervals", 12, "muted")
        _forest(drawn, results, (MARGIN, top, right, top + ROW * len(rows)))
        if transfer:
            left = WIDTH - MARGIN - square
            _text(drawn, left, top - 26, "gain (%) of a row's task from a column's", 12, "muted")
            box = (left + 84, top, left + 84 + cell * len(transfer["tasks"]), top + cell * len(transfer["tasks"]))
            _matrix(_axes(drawn, box), transfer)
        _text(drawn, MARGIN, height - MARGIN - 12, MARKS, 11, "muted")
        with replacing(path) as temporary:
            drawn.savefig(temporary, format="png", dpi=72 * scale, facecolor=LIGHT["page"], metadata={"Software": None})


def _forest(drawn: Figure, results: Results, box: tuple[float, float, float, float]) -> None:
    rows = view.joint(results)
    if not rows:
        return
    longest = min(24, max(len(label(row)) for row in rows))
    left, top, right, bottom = box
    ax = _axes(drawn, (left + 8.2 * longest + 8, top, right - 172, bottom))
    plots.forest(
        ax, [(label(row), row["delta_m"]) for row in rows], LIGHT, names=longest, left=left / WIDTH, right=right / WIDTH
    )


def _matrix(ax: Axes, transfer: Mapping[str, Any]) -> None:
    """The transfer matrix, its colours as on the page."""
    names = transfer["tasks"]
    gains = [[0.0 if gain is None else gain for gain in row] for row in transfer["gain"]]
    most = max(abs(gain) for row in gains for gain in row) or 1.0
    shades = LinearSegmentedColormap.from_list("verdicts", [LIGHT["worse"], LIGHT["panel"], LIGHT["better"]])
    for i, row in enumerate(transfer["gain"]):
        for j, gain in enumerate(row):
            if gain is None:
                continue
            word = transfer["verdict"][i][j] or ""
            strength = 0.58 * gain / most * (1.0 if word in ("better", "worse") else 0.4)
            ax.fill_between([j - 0.48, j + 0.48], i - 0.47, i + 0.47, color=shades(0.5 + strength / 2), linewidth=0)
            text = f"{words.percent(gain).removesuffix(chr(160) + '%')} {words.mark({'verdict': word})}"
            ax.text(j, i, text.strip(), ha="center", va="center", fontsize=10.5, color=LIGHT["ink"])
    ax.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    ax.set_xticks(range(len(names)), [words.shorten(name, 7) for name in names])
    ax.set_yticks(range(len(names)), [words.shorten(name, 10) for name in names])
    ax.tick_params(length=0, labelsize=10.5, colors=LIGHT["ink"], pad=6)
    ax.spines[:].set_visible(False)


def _axes(drawn: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes in a box of pixels from the top left: left, top, right, bottom."""
    width, height = (72 * inches for inches in drawn.get_size_inches())
    left, top, right, bottom = box
    return drawn.add_axes((left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height))


def _text(drawn: Figure, x: float, y: float, text: str, size: float, colour: str, weight: str = "normal") -> None:
    width, height = (72 * inches for inches in drawn.get_size_inches())
    drawn.text(x / width, 1 - y / height, text, fontsize=size, color=LIGHT[colour], fontweight=weight, va="top")
