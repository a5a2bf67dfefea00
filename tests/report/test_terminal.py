"""The table for the terminal: complete at any width, marked as the verdicts say, and safe with any name."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.report.report_fixture import CASES, EIGHT, FIVE, make

from polytask.errors import InputError
from polytask.report import terminal_table
from polytask.report.palette import VERDICTS


def printed(results: dict[str, Any], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(terminal_table(results))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 100, 200])
@pytest.mark.parametrize("name", CASES)
def test_every_line_fits_and_every_task_appears(name: str, width: int) -> None:
    results = make(**CASES[name])
    text = printed(results, width)
    assert max(map(cell_len, text.splitlines())) <= width
    for task in results["data"]["tasks"]:
        assert task["name"][:8] in text
    assert " ".join(results["summary"][-1].split()) in " ".join(text.split())


def test_rows_carry_numbers_and_marks() -> None:
    results = make()
    lines = printed(results, 200).splitlines()
    for row in results["methods"]:
        line = next(line for line in lines if line.startswith(row["name"] + " "))
        found = [row["delta_m"], *(row["tasks"][task]["difference"] for task in FIVE)]
        marks = [VERDICTS[finding["verdict"]] for finding in found if finding]
        assert [c for c in line if c in "▲▼·"] == marks
        assert f"{row['tasks']['left']['mean']:.4f} ± " in line


def test_methods_stand_in_the_order_of_delta_m() -> None:
    results = make()
    lines = printed(results, 200).splitlines()
    delta = {row["name"]: row["delta_m"]["mean"] for row in results["methods"] if row["delta_m"]}
    shown = [name for line in lines for name in delta if line.startswith(name + " ") and "±" in line]
    assert shown == sorted(delta, key=lambda name: -delta[name])
    assert len(shown) == len(EIGHT) + 1


def test_markup_and_escapes_in_names_are_text() -> None:
    results = make(tasks={"[bold]a[/]": "accuracy", "b\x1b[31m": "rmse"}, methods=("[red]hard", "hard+equal"))
    text = printed(results, 120)
    assert "[bold]a[/]" in text and "[red]hard" in text
    assert "\x1b" not in text


def test_missing_numbers_are_dashes() -> None:
    results = make() | {"grouping": None, "transfer": None, "cosines": None}
    for row in results["methods"]:
        row |= {"delta_m": None, "parameters": None}
    assert "–" in printed(results, 100)
    with pytest.raises(InputError, match="schema"):
        terminal_table({"schema": 7})
