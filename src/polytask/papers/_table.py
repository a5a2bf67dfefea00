"""The claims' results as text."""

from __future__ import annotations

from collections import Counter
from typing import Any

VERDICTS = ("holds", "undecided", "contradicted")


def summary(results: dict[str, Any]) -> str:
    """A markdown table of ``results.json``, as `reproduce` writes it: a row for each paper, and how many claims hold."""
    lines = [f"| paper | title | {' | '.join(VERDICTS)} |", "|---|---|---|---|---|"]
    for slug, result in results.items():
        found = Counter(claim["evidence"]["verdict"] for claim in result["claims"])
        lines.append(f"| `{slug}` | {result['title']} | {' | '.join(str(found[verdict]) for verdict in VERDICTS)} |")
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """All claims of ``results.json``: for each paper a heading, a table, and below it what to keep in mind."""
    return "\n\n".join(_section(slug, result) for slug, result in results.items())


def measured(evidence: dict[str, Any]) -> str:
    """Method against baseline, the gain and its interval: ``5.2 vs 7.4, gain 2.2 [2.0, 2.4], 10 seeds``."""
    method, baseline = (sum(evidence[name]) / len(evidence["seeds"]) for name in ("method", "baseline"))
    gain = f"{evidence['mean']:.2f} [{evidence['low']:.2f}, {evidence['high']:.2f}]"
    return f"{method:.3g} vs {baseline:.3g}, gain {gain}, {len(evidence['seeds'])} seeds"


def _section(slug: str, result: dict[str, Any]) -> str:
    lines = [f"### {slug}", "", f"*{result['title']}* ({result['reference']}).", ""]
    lines += ["| claim | the paper reports | measured here | verdict |", "|---|---|---|---|"]
    for claim in result["claims"]:
        evidence = claim["evidence"]
        cells = [claim["statement"], claim["claimed"], measured(evidence), f"**{evidence['verdict']}**"]
        lines.append(f"| {' | '.join(cells)} |")
    comments = [f"- *{claim['name']}*: {claim['comment']}" for claim in result["claims"] if claim["comment"]]
    return "\n".join([*lines, *(["", *comments] if comments else [])])
