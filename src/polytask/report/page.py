"""The report as one HTML page that needs nothing else: no network, no scripts, no fonts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from polytask.files import write_text
from polytask.report import figures, view, words
from polytask.report.palette import VERDICTS, variables
from polytask.report.view import Results, Row

EVIDENCE = 4
"""Sentences of evidence for a grouping that are shown at once; the others unfold."""


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
        "clean": words.clean,
        "count": words.count,
        "duration": words.duration,
        "listed": words.listed,
        "percent": words.percent,
        "percent_interval": words.percent_interval,
        "number": words.number,
        "plus_minus": words.plus_minus,
        "text": view.text_of,
    }
    environment.globals |= {"verdict": words.verdict, "VERDICTS": VERDICTS, "variables": variables, "plural": words.plural}
    return environment


def _content(results: Results) -> dict[str, Any]:
    tasks = results["data"]["tasks"]
    rows = view.ordered(results)
    equal_time = view.at_equal_time(results)
    timed = {name: found for name, (_, found) in equal_time.items() if found}
    return {
        "results": results,
        "css": Markup(_environment().loader.get_source(_environment(), "page.css")[0]),  # type: ignore[union-attr]
        "facts": view.facts(results),
        "tasks": tasks,
        "rows": rows,
        "joint": view.joint(results),
        "decimals": {task["name"]: _decimals(rows, task["name"]) for task in tasks},
        "difference_decimals": {task["name"]: _difference_decimals(rows, task["name"]) for task in tasks},
        "leads": view.who_leads(view.deltas(results), "At equal steps"),
        "equal_time": equal_time,
        "leads_timed": view.who_leads(timed, "At equal wall-clock time") if timed else "",
        "plain": next((row for row in rows if row["name"] == view.PLAIN), None),
        "yardsticks": [(row, view.beside_yardstick(results, row)) for row in view.yardsticks(results)],
        "controls": view.controls(results),
        "matrices": _matrices(results),
        "shown_evidence": EVIDENCE,
        "figures": figures.draw(results),
        "highlighted": view.highlighted(results),
    }


def _decimals(rows: Sequence[Row], task: str) -> int:
    return words.decimals_for(row["tasks"][task] for row in rows if row["tasks"].get(task))


def _difference_decimals(rows: Sequence[Row], task: str) -> int:
    found = (row["tasks"].get(task) for row in rows)
    return words.decimals_for(f["difference"] for f in found if f and f["difference"])


def _matrices(results: Results) -> dict[str, Mapping[str, Any] | None]:
    """The cells of both heat maps: text, interval, mark, and how strongly each is coloured (-1 to 1)."""
    transfer, cosines = results["transfer"], results["cosines"]
    return {
        "transfer": None if transfer is None else _transfer_matrix(transfer),
        "cosines": None if cosines is None else _cosine_matrix(cosines),
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
                    "text": words.percent(gain).removesuffix(" %"),
                    "interval": words.percent_interval(interval) if known else "",
                    "verdict": transfer["verdict"][i][j] or "",
                    "strength": gain / strength,
                }
            )
        rows.append(cells)
    return {"tasks": transfer["tasks"], "rows": rows}


def _cosine_matrix(cosines: Mapping[str, Any]) -> dict[str, Any]:
    means = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(cosines["mean"])]
    strength = _strength(means)
    rows = [
        [
            None
            if value is None
            else {"text": words.number(value, 2, sign=True), "interval": "", "verdict": "", "strength": value / strength}
            for value in row
        ]
        for row in means
    ]
    return {"tasks": cosines["tasks"], "rows": rows}


def _strength(table: Sequence[Sequence[float | None]]) -> float:
    """The largest magnitude in a table: what the strongest colour stands for."""
    return max((abs(value) for row in table for value in row if value is not None), default=0.0) or 1.0
