"""The report's plots: functions that draw findings on axes, in whichever colours they are given.

Labels stand beside what they name, so that no plot needs a legend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from matplotlib.transforms import blended_transform_factory

from polytask.report.words import duration, percent, percent_interval, shorten, verdict

Colours = Mapping[str, str]
Found = Mapping[str, Any]

SHAPES = {"better": "^", "worse": "v", "undecided": "o", "": "o"}
"""The marker of each verdict, as its colour alone would not do."""


STEPS = [1, 2, 5, 10]
"""What ticks may be apart, up to a power of ten."""
FOREST = 12.5
"""The font size of a forest plot, which is read as a table is."""


class Point(NamedTuple):
    """One method in a plot of a metric against a cost."""

    name: str
    cost: float
    found: Found
    baseline: bool = False


class Line(NamedTuple):
    """A mean with its band over training; without a colour it stays in the background, unlabelled."""

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str | None = None
    dashed: bool = False


def forest(
    ax: Axes,
    rows: Sequence[tuple[str, Found | None]],
    colours: Colours,
    *,
    names: int,
    narrow: bool = False,
    left: float = 0.0,
    right: float = 1.0,
) -> None:
    """Intervals of a relative difference, a row for each name, with 0 as the line of the single-task models.

    A dotted line marks the lower end of the best interval: whoever reaches it cannot be told from the best.

    Args:
        ax: the axes, with room for names on the left and for numbers on the right.
        rows: name and finding, from top to bottom.
        colours: by name, as in the palette.
        names: the longest name that fits, in characters.
        narrow: leave the bounds out of the numbers on the right.
        left, right: where rows begin and end, in fractions of the figure.
    """
    known = [found for _, found in rows if found]
    low, high = limits(known)
    ax.set_xlim(100 * low, 100 * high)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.axvline(0, color=colours["ink"], linewidth=1)
    if len(known) > 1:
        best = max(known, key=lambda found: found["mean"])
        ax.axvline(100 * best["low"], color=colours["muted"], linewidth=1.2, linestyle=(0, (1.2, 2)))
    figure = ax.figure
    across = blended_transform_factory(figure.transFigure, ax.transData)
    for y, (name, found) in enumerate(rows):
        if y % 2 == 0:
            ends, shade = [left, right], colours["panel"]
            ax.fill_between(ends, y - 0.5, y + 0.5, transform=across, color=shade, linewidth=0, clip_on=False, zorder=0)
        ax.text(
            left + 0.006,
            y,
            shorten(name, names),
            transform=across,
            color=colours["ink"],
            va="center_baseline",
            fontsize=FOREST,
        )
        if found is None:
            _beside(ax, y, "not defined", colours["muted"])
            continue
        colour = colours[verdict(found) or "undecided"]
        _interval(ax, y, found, (low, high), colour)
        mean = percent(found["mean"])
        _beside(ax, y, mean if narrow else f"{mean}  {percent_interval(found)}", colour)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    _quiet(ax, colours)
    ax.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8, steps=STEPS))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _percents(value)))
    ax.grid(axis="x", color=colours["line"], linewidth=0.8)


def curves(ax: Axes, lines: Sequence[Line], colours: Colours, *, names: int) -> None:
    """Means over training with their bands; coloured lines are labelled at their right end."""
    for line in lines:
        if line.colour is None:
            ax.plot(line.x, line.mean, color=colours["faint"], linewidth=0.8, alpha=0.8, zorder=1)
            continue
        colour = colours[line.colour]
        if len(line.x) == 1:
            ax.plot(line.x, line.mean, "o", color=colour, markersize=3, zorder=3)
        ax.fill_between(line.x, line.low, line.high, color=colour, alpha=0.1, linewidth=0, zorder=2)
        ax.plot(line.x, line.mean, color=colour, linestyle=(0, (4, 2)) if line.dashed else "-", zorder=3)
    shown = [line for line in lines if line.colour is not None and line.x]
    end = max((line.x[-1] for line in lines if line.x), default=1)
    ax.set_xlim(min((line.x[0] for line in lines if line.x), default=0), end)
    low, high = _middle(lines)
    ax.set_ylim(low, high)
    ax.annotate("steps", (1, 0), (14, -4), "axes fraction", "offset pixels", color=colours["muted"], va="top", fontsize=10)
    _labels(
        ax, [(line.x[-1], line.mean[-1], shorten(line.name, names), colours[str(line.colour)]) for line in shown], colours
    )
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=STEPS))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _values(ax, colours)


def cost(ax: Axes, points: Sequence[Point], colours: Colours, *, names: int, relative: bool, time: bool) -> None:
    """A metric with its interval against a cost, a labelled point for each method.

    Args:
        ax: the axes, with room for labels on the right.
        points: the methods.
        colours: by name, as in the palette.
        names: the longest name that fits, in characters.
        relative: whether the metric is a relative difference, shown in percent with a line at 0.
        time: whether the cost is seconds; otherwise it is a count.
    """
    if relative:
        ax.axhline(0, color=colours["ink"], linewidth=1)
    costs = [point.cost for point in points]
    if min(costs) > 0 and max(costs) > 3 * min(costs):
        ax.set_xscale("log")
        ax.set_xlim(min(costs) / 1.25, max(costs) * 1.25)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3) if max(costs) > 20 * min(costs) else (1, 2, 5)))
    else:
        ax.set_xlim(0, 1.08 * max(costs) or 1)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    low, high = limits([point.found for point in points], zero=relative)
    ax.set_ylim(low, high)
    placed = []
    for point in points:
        found = point.found
        colour = colours["ink" if point.baseline else verdict(found) or "undecided"]
        if found["low"] < found["high"]:
            ax.plot([point.cost] * 2, [found["low"], found["high"]], color=colour, linewidth=1.4)
        y = min(max(found["mean"], low), high)
        marker = "s" if point.baseline else SHAPES[verdict(found)] if y == found["mean"] else 7 if y == low else 6
        ax.plot(point.cost, y, marker=marker, color=colour, markersize=6, clip_on=False, zorder=3)
        placed.append((point.cost, y, shorten(point.name, names), colour))
    _labels(ax, placed, colours)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value) if time and value else _amount(value)))
    ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    _values(ax, colours)
    if relative:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percents(100 * value)))


def _interval(ax: Axes, y: float, found: Found, edges: tuple[float, float], colour: str) -> None:
    """A horizontal interval with its mean; an arrow where it leaves the plot."""
    low, high = (min(max(found[key], edges[0]), edges[1]) for key in ("low", "high"))
    ax.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2.4, solid_capstyle="butt", zorder=3)
    if edges[0] <= found["mean"] <= edges[1]:
        ax.plot(100 * found["mean"], y, SHAPES[verdict(found)], color=colour, markersize=8, zorder=4)
    for beyond, edge, arrow in ((found["low"] < edges[0], edges[0], 4), (found["high"] > edges[1], edges[1], 5)):
        if beyond:
            ax.plot(100 * edge, y, marker=arrow, color=colour, markersize=7, clip_on=False, zorder=4)


def limits(found: Sequence[Found], zero: bool = True) -> tuple[float, float]:
    """An axis that holds all intervals, unless a few are so far off that the others could not be told apart."""
    if not found:
        return -0.01, 0.01
    lows, highs = sorted(f["low"] for f in found), sorted((f["high"] for f in found), reverse=True)
    if zero:
        lows, highs = sorted([*lows, 0.0]), sorted([*highs, 0.0], reverse=True)
    whole = len(lows)
    while len(lows) > 3 and lows[1] - lows[0] > 1.5 * (highs[0] - lows[1]):
        lows = lows[1:]
    while len(highs) > 3 and highs[0] - highs[1] > 1.5 * (highs[1] - lows[0]):
        highs = highs[1:]
    low, high = lows[0], highs[0]
    span = (high - low) or 0.2 * abs(high) or 0.1
    return low - (0.06 if len(lows) == whole else 0.2) * span, high + (0.06 if len(highs) == whole else 0.2) * span


def _middle(lines: Sequence[Line]) -> tuple[float, float]:
    """The range of labelled means but for the first third, where they are steep, and of the bands in the last third."""
    lines = [line for line in lines if line.colour] or lines
    values = [value for line in lines for value in line.mean[len(line.mean) // 3 :]]
    bands = [
        value for line in lines if line.colour for side in (line.low, line.high) for value in side[-max(1, len(side) // 3) :]
    ]
    known = values + bands
    if not known:
        return 0.0, 1.0
    margin = 0.05 * (max(known) - min(known)) or 0.01 * (abs(max(known)) or 1)
    return min(known) - margin, max(known) + margin


def _labels(ax: Axes, placed: Sequence[tuple[float, float, str, str]], colours: Colours) -> None:
    """Names in a column at the right edge, moved apart where they would overlap and tied to their points by thin lines."""
    if not placed:
        return
    height = ax.get_window_extent().height
    room = 13.0 / height if height else 0.1
    to_axes = ax.transLimits.transform
    scale = ax.transScale.transform
    points = sorted(((*to_axes(scale((x, y))), text, colour) for x, y, text, colour in placed), key=lambda p: p[1])
    spots = _apart([float(p[1]) for p in points], room, least=0.3 * room)
    for (x, y, text, colour), spot in zip(points, spots, strict=True):
        ax.plot(
            [x, 1.015, 1.035],
            [y, spot, spot],
            transform=ax.transAxes,
            color=colours["faint"],
            linewidth=0.7,
            clip_on=False,
            zorder=0,
        )
        ax.text(1.045, spot, text, transform=ax.transAxes, color=colour, va="center", ha="left", fontsize=10)


def _apart(wanted: Sequence[float], room: float, least: float = 0.0) -> list[float]:
    """Ascending positions as near as possible to ``wanted`` (ascending), at least ``room`` apart and none below ``least``.

    >>> [round(x, 3) for x in _apart([0.0, 0.5, 0.5], 0.1)]
    [0.0, 0.45, 0.55]
    """
    clusters: list[list[float]] = []  # of each: its mean wanted first position, and how many it holds
    for x in wanted:
        clusters.append([max(x, least), 1])
        while len(clusters) > 1 and clusters[-2][0] + clusters[-2][1] * room > clusters[-1][0]:
            start, size = clusters.pop()
            before, held = clusters[-1]
            middle = (before * held + (start - held * room) * size) / (held + size)
            clusters[-1] = [max(middle, least), held + size]
    return [start + i * room for start, size in clusters for i in range(int(size))]


def _beside(ax: Axes, y: float, text: str, colour: str) -> None:
    ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), color=colour, va="center_baseline", fontsize=FOREST)


def _values(ax: Axes, colours: Colours) -> None:
    """A quiet vertical axis of numbers with light rules."""
    ax.spines["left"].set_visible(False)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _amount(value)))
    ax.grid(axis="y", color=colours["line"], linewidth=0.8)
    _quiet(ax, colours)


def _quiet(ax: Axes, colours: Colours) -> None:
    ax.set_facecolor("none")
    ax.set_axisbelow(True)
    ax.tick_params(which="both", colors=colours["muted"], length=0, labelsize=10)
    ax.spines["bottom"].set_color(colours["faint"])


def _amount(value: float) -> str:
    """A tick's number, short."""
    size = abs(value)
    for least, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= least:
            return f"{value / (1e3 if unit == 'k' else least):.3g} {unit}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _percents(value: float) -> str:
    """A tick's percentage, with a sign and no more digits than it has."""
    value = round(value, 9)
    return f"{value:{'+' if value else ''}.4g}\xa0%".replace("-", "−")
