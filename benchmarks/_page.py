"""A benchmark's page: what was measured beside its bar, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from benchmarks._machine import sentence

Row: TypeAlias = tuple[str, str, str, bool | None]
"""What was asked, the figure, the bar, and whether it is met; ``None`` where there is no bar."""


def page(title: str, about: dict[str, Any], words: Iterable[str], rows: Iterable[Row], figure: str = "figure") -> str:
    """The page.

    Args:
        title: of the page.
        about: what `benchmarks._machine.machine` says.
        words: lines on what was measured and how.
        rows: of the table.
        figure: the head of the table's second column.
    """
    lines = [
        f"# {title}",
        "",
        f"{sentence(about)}.",
        "",
        *words,
        "",
        f"| what | {figure} | bar | met |",
        "|---|---|---|---|",
    ]
    for what, found, bar, met in rows:
        lines.append(f"| {what} | {found} | {bar} | {'' if met is None else 'yes' if met else '**no**'} |")
    return "\n".join([*lines, ""])
