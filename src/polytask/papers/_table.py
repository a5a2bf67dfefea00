"""The claims' results as text: one row for each claim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def markdown(results: dict[str, Any]) -> str:
    """A markdown table of ``results.json``, as `reproduce` writes it, and below it what the claims say to keep in mind."""
    lines = ["| paper | claim | the paper reports | measured here | verdict |", "|---|---|---|---|---|"]
    for slug, result in results.items():
        for name, cells in zip([f"`{slug}`", *[""] * len(result["claims"])], _cells(result), strict=False):
            lines.append(f"| {' | '.join([name, *cells])} |")
    comments = [claim["comment"] for result in results.values() for claim in result["claims"] if claim["comment"]]
    return "\n".join([*lines, *(["", *(f"- {comment}" for comment in comments)] if comments else [])])


def measured(evidence: dict[str, Any]) -> str:
    """Method against baseline, the gain and its interval: ``5.2 vs 7.4, gain 2.2 [2.0, 2.4], 10 seeds``."""
    method, baseline = (sum(evidence[name]) / len(evidence["seeds"]) for name in ("method", "baseline"))
    gain = f"{evidence['mean']:.2f} [{evidence['low']:.2f}, {evidence['high']:.2f}]"
    return f"{method:.3g} vs {baseline:.3g}, gain {gain}, {len(evidence['seeds'])} seeds"


def _cells(result: dict[str, Any]) -> Iterator[list[str]]:
    for claim in result["claims"]:
        evidence = claim["evidence"]
        yield [claim["statement"], claim["claimed"], measured(evidence), f"**{evidence['verdict']}**"]
