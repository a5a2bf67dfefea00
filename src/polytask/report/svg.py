"""Figures as SVG that lives inside a page: its text in the page's font, its colours the page's variables."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polytask.report.palette import SENTINELS
from polytask.report.words import clean

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "polytask",
    "text.parse_math": False,
    "font.size": 11,
    "font.family": ["DejaVu Sans"],
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "figure.dpi": 72,
}


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` x ``height`` CSS pixels in the report's style."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's own font draws the text
        made = Figure(figsize=(width / 72, height / 72))
        FigureCanvasAgg(made)
        yield made


def axes(drawn: Figure, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes that leave margins in pixels."""
    width, height = (72 * inches for inches in drawn.get_size_inches())
    return drawn.add_axes((left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height))


def inline(drawn: Figure, name: str, label: str) -> Markup:
    """The figure as an ``<svg>`` element.

    Args:
        drawn: in `SENTINELS` colours.
        name: unique in the page; goes before every id.
        label: what the picture shows, for those who do not see it.
    """
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    width = re.search(r'viewBox="0 0 ([\d.]+)', text)
    assert width is not None
    opening = f'<svg class="plot" viewBox="\\1" style="max-width: {width[1]}px" role="img" aria-label="{{}}">'
    text = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', opening, text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    text = re.sub(r"font: (?:[\w-]+ )*?([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for colour, sentinel in SENTINELS.items():
        text = text.replace(sentinel, f"var(--{colour})")
    text = re.sub(r"\n\s*", "\n", text)
    head, rest = text.split(">", 1)
    return Markup(head.replace("{}", str(escape(clean(label)))) + ">" + rest)
