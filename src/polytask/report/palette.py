"""The report's colours, in one place: for the page (light and dark), for plots inside it, and for plots in files."""

from __future__ import annotations

from collections.abc import Mapping

COLOURS: Mapping[str, tuple[str, str]] = {
    "ink": ("#17202b", "#e8ecf2"),
    "muted": ("#596473", "#a0acba"),
    "faint": ("#c3cad3", "#465261"),
    "line": ("#dfe4ea", "#2b3440"),
    "page": ("#ffffff", "#11151b"),
    "panel": ("#f5f7f9", "#1a2029"),
    "better": ("#1367a8", "#72b7f5"),
    "worse": ("#b5460d", "#f69a63"),
    "undecided": ("#6d7886", "#8f9bab"),
    "first": ("#00796b", "#4cc9b5"),
    "second": ("#7b3fb3", "#c196f0"),
    "third": ("#946800", "#e0b94a"),
}
"""Each colour by what it is for: its light and its dark value. Blue against orange reads with any colour vision."""

LIGHT: Mapping[str, str] = {name: light for name, (light, _) in COLOURS.items()}
"""The colours of plots in files."""

SENTINELS: Mapping[str, str] = {name: f"#5e47{i:02x}" for i, name in enumerate(COLOURS, start=0xA0)}
"""Stand-ins that plots inside the page are drawn with, each then replaced by the page's variable of that name."""

VERDICTS: Mapping[str, str] = {"better": "▲", "worse": "▼", "undecided": "·"}
"""The mark of each verdict: no finding is told by colour alone."""


def variables(dark: bool) -> str:
    """CSS declarations of all colours."""
    return " ".join(f"--{name}: {values[dark]};" for name, values in COLOURS.items())
