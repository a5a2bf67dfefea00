"""The results as tables for a terminal, as wide as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from polytask.report import view, words
from polytask.report.view import Results, Row

STYLES = {"better": "bold bright_blue", "worse": "bold dark_orange", "undecided": "", "": ""}
GAP = 2
"""Columns between cells."""
NAME = 28
"""The longest name that is shown whole."""

Column = tuple[str, str, list[Text]]
"""A heading, a second line under it, and a cell for each row."""


class TerminalTable:
    """A rich renderable: a row for each method, then the grouping and the summary.

    Columns of tasks that do not fit beside the others go into further tables below, under the same rows.
    """

    def __init__(self, results: Results) -> None:
        view.check(results)
        self.results = results
        self.rows = view.ordered(results)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [
            Text(words.shorten(row["name"], NAME), style="" if row["role"] == "method" else "italic") for row in self.rows
        ]
        first = ("", "method", names)
        for columns in _fitting(first, [self._delta(), *self._costs()], self._tasks(), options.max_width):
            yield _table([first, *columns])
            yield Text()
        yield Text(
            "▲ better, ▼ worse, · undecided against single-task at 5 %, corrected for the number of methods", style="dim"
        )
        yield from self._conclusion()

    def _delta(self) -> Column:
        cells = []
        for row in self.rows:
            found = row["delta_m"]
            text = (
                f"{words.percent(found['mean'])} {words.percent_interval(found)} {words.mark(found)}"
                if found
                else words.NOTHING
            )
            cells.append(Text(text if found else f"{text}  ", style=STYLES[words.verdict(found)]))
        return ("delta_m", "95 % interval  ", cells)

    def _costs(self) -> list[Column]:
        seconds = [Text(words.duration(row["seconds"]["mean"] if row["seconds"] else None)) for row in self.rows]
        return [("time", "", seconds), ("parameters", "", [Text(words.count(row["parameters"])) for row in self.rows])]

    def _tasks(self) -> list[Column]:
        columns = []
        for task in self.results["data"]["tasks"]:
            name, arrow = task["name"], "↑" if task["higher_is_better"] else "↓"
            found = [row["tasks"].get(name) for row in self.rows]
            decimals = words.decimals_for(f for f in found if f)
            columns.append((words.shorten(name, 18), f"{task['metric']} {arrow}", [_metric(f, decimals) for f in found]))
        return columns

    def _conclusion(self) -> Iterator[Any]:
        grouping = self.results["grouping"]
        if grouping:
            groups = [" + ".join(map(words.clean, group)) for group in grouping["groups"]]
            yield Text()
            yield Text.assemble(("Suggested grouping  ", "bold"), "   |   ".join(groups))
        yield Text()
        for i, sentence in enumerate(self.results["summary"]):
            yield Text(words.sentence(sentence), style="bold" if i == len(self.results["summary"]) - 1 else "")


def terminal_table(results: Results) -> TerminalTable:
    """``results`` (what `polytask.compare` returns, or ``results.json``) as something that rich prints."""
    return TerminalTable(results)


def _metric(found: Row | None, decimals: int) -> Text:
    difference = (found or {}).get("difference")
    text = f"{words.plus_minus(found, decimals)} {words.mark(difference) or ' '}"
    return Text(text, style=STYLES[words.verdict(difference)])


def _fitting(first: Column, wanted: Sequence[Column], tasks: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """The columns of each table: as many as ``width`` holds beside ``first``, at least one, ``wanted`` before ``tasks``.

    Where all tasks fit in one table, they stand between delta_m and the costs; else the costs come first.
    """
    delta, *costs = wanted
    whole = [delta, *tasks, *costs]
    if sum(map(_width, [first, *whole])) <= width:
        yield whole
        return
    table: list[Column] = []
    for column in [*wanted, *tasks]:
        if table and sum(map(_width, [first, *table, column])) > width:
            yield table
            table = []
        table.append(column)
    yield table


def _width(column: Column) -> int:
    heading, second, cells = column
    return max(cell_len(heading), cell_len(second), *(cell.cell_len for cell in cells)) + GAP


def _table(columns: Sequence[Column]) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_edge=False)
    for i, (heading, second, _) in enumerate(columns):
        title = Text(f"{heading}\n", style="bold").append(second, style="dim not bold")
        table.add_column(title, justify="left" if i == 0 else "right", no_wrap=True)
    for cells in zip(*(cells for _, _, cells in columns), strict=True):
        table.add_row(*cells)
    return table
