"""The report as one HTML page that needs nothing else: no network, no scripts, no fonts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from polytask.files import write_text
from polytask.report import figures, view, words
from polytask.report.palette import VERDICTS, variables
from polytask.report.view import Results, Row

EVIDENCE = 4
"""Sentences of evidence for a grouping that are shown at once; the others unfold."""
COLUMNS = 10
"""Columns of the heat map over training, at most."""
PALE = 0.4
"""How much of its colour a gain keeps that is undecided."""


def write_report(results: Results, path: Path | str) -> None:
    """Write ``results`` (what `polytask.compare` returns, or ``results.json``) as one self-contained HTML page."""
    view.check(results)
    page = _environment().get_template("page.html").render(**_content(results))
    write_text(path, page.encode("utf-8", "replace").decode())  # a name may hold half of a surrogate pair


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("polytask.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": _breakable,
        "clean": words.clean,
        "count": words.count,
        "duration": words.duration,
        "listed": words.listed,
        "percent": words.percent,
        "percent_interval": words.percent_interval,
        "number": words.number,
        "sentence": words.sentence,
        "plus_minus": words.plus_minus,
        "text": view.text_of,
    }
    environment.globals |= {"verdict": words.verdict, "VERDICTS": VERDICTS, "plural": words.plural}
    return environment


def _content(results: Results) -> dict[str, Any]:
    tasks = results["data"]["tasks"]
    rows = view.ordered(results)
    equal_time = view.at_equal_time(results)
    return {
        "results": results,
        "css": _styles(),
        "facts": view.facts(results),
        "tasks": tasks,
        "rows": rows,
        "joint": view.joint(results),
        "decimals": {task["name"]: _decimals(rows, task["name"]) for task in tasks},
        "difference_decimals": {task["name"]: _difference_decimals(rows, task["name"]) for task in tasks},
        "leads": f"{view.who_leads(view.deltas(results), 'At equal steps')} {view.tally(view.deltas(results))}",
        "equal_time": equal_time,
        "leads_timed": " ".join(_leads_timed(equal_time)),
        "plain": next((row for row in rows if row["name"] == view.PLAIN), None),
        "yardsticks": [(row, view.beside_yardstick(results, row)) for row in view.yardsticks(results)],
        "controls": view.controls(results),
        "matrices": _matrices(results),
        "longest": max(len(str(name)) for name in [row["name"] for row in rows] + [task["name"] for task in tasks]),
        "shown_evidence": EVIDENCE,
        "figures": figures.draw(results),
        "highlighted": view.highlighted(results),
    }


def _leads_timed(equal_time: Mapping[str, tuple[int | None, Row | None]]) -> Iterator[str]:
    """Sentences on who leads at equal time; none where nothing was measured so."""
    found = {name: delta for name, (_, delta) in equal_time.items() if delta}
    if found:
        yield view.who_leads(found, "At equal wall-clock time")
        yield view.tally(found)
        missing = [name for name, (steps, _) in equal_time.items() if steps is None]
        if missing:
            yield f"Not measured so: {words.listed(missing)}."


def _breakable(name: str) -> Markup:
    """A name that may wrap after the signs that join its parts."""
    return Markup(re.sub(r"([+_/-])", r"\1<wbr>", str(escape(words.clean(name)))))


def _styles() -> Markup:
    text = resources.files("polytask.report").joinpath("templates/page.css").read_text(encoding="utf-8")
    return Markup(text.replace("{{LIGHT}}", variables(dark=False)).replace("{{DARK}}", variables(dark=True)))


def _decimals(rows: Sequence[Row], task: str) -> int:
    return words.decimals_for(row["tasks"][task] for row in rows if row["tasks"].get(task))


def _difference_decimals(rows: Sequence[Row], task: str) -> int:
    found = (row["tasks"].get(task) for row in rows)
    return words.decimals_for(f["difference"] for f in found if f and f["difference"])


def _matrices(results: Results) -> dict[str, Mapping[str, Any] | None]:
    """The cells of the heat maps: text, interval, mark, and how strongly each is coloured (-1 to 1)."""
    transfer, cosines = results["transfer"], results["cosines"]
    return {
        "transfer": None if transfer is None else _transfer_matrix(transfer),
        "cosines": None if cosines is None else _cosine_matrix(cosines),
        "over_time": None
        if cosines is None or not cosines["over_time"]["step"]
        else _cosines_over_time(cosines["over_time"]),
    }


def _transfer_matrix(transfer: Mapping[str, Any]) -> dict[str, Any]:
    strength = _strength(transfer["gain"])
    rows = []
    for i, gains in enumerate(transfer["gain"]):
        cells: list[dict[str, Any] | None] = []
        for j, gain in enumerate(gains):
            if i == j or gain is None:
                cells.append(None)
                continue
            interval = {"low": transfer["low"][i][j], "high": transfer["high"][i][j]}
            known = None not in interval.values()
            cells.append(
                {
                    "text": words.percent(gain).removesuffix("\xa0%"),
                    "interval": words.percent_interval(interval) if known else "",
                    "verdict": transfer["verdict"][i][j] or "",
                    "strength": gain / strength * (1 if transfer["verdict"][i][j] in ("better", "worse") else PALE),
                    "sure": False,
                }
            )
        rows.append(cells)
    return {"columns": transfer["tasks"], "names": transfer["tasks"], "rows": rows}


def _cosine_matrix(cosines: Mapping[str, Any]) -> dict[str, Any]:
    means = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(cosines["mean"])]
    strength = _strength(means)
    rows = [
        [
            None
            if value is None
            else {
                "text": words.number(value, 2, sign=True),
                "interval": "",
                "verdict": "",
                "strength": value / strength,
                "sure": False,
            }
            for value in row
        ]
        for row in means
    ]
    return {"columns": cosines["tasks"], "names": cosines["tasks"], "rows": rows}


def _cosines_over_time(over_time: Mapping[str, Any]) -> dict[str, Any]:
    """A row for each pair, the most conflicting first, its cell in bold type where the interval leaves out 0."""
    stride = -(-len(over_time["step"]) // COLUMNS)
    pairs = sorted(over_time["pairs"], key=lambda pair: sum(pair["mean"]))
    strength = _strength([pair["mean"] for pair in pairs])
    rows = [
        [
            {
                "text": words.number(mean, 2, sign=True),
                "interval": "",
                "verdict": "",
                "strength": mean / strength,
                "sure": low > 0 or high < 0,
            }
            for mean, low, high in list(zip(pair["mean"], pair["low"], pair["high"], strict=True))[::-stride][::-1]
        ]
        for pair in pairs
    ]
    steps = [f"{step:,}" for step in over_time["step"][::-stride][::-1]]
    return {"columns": steps, "names": [" × ".join(pair["tasks"]) for pair in pairs], "rows": rows}


def _strength(table: Sequence[Sequence[float | None]]) -> float:
    """The largest magnitude in a table: what the strongest colour stands for."""
    return max((abs(value) for row in table for value in row if value is not None), default=0.0) or 1.0
