"""What the commands share: options declared once, the data that a command names, and how results are printed."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from polytask.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from polytask.data import DataSet

Options = TypeVar("Options")

DATA_HELP = "A table (CSV, TSV, gzip too, Parquet, Arrow), 'multidigits', or a folder of idx image files."


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data to train on, and how a table becomes a data set. Options of every command that trains."""

    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP, show_default=False)]
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", metavar="COLUMN[:KIND]", help="A column to predict; repeat for each.", show_default=False
        ),
    ] = None
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="A task of image data; repeat for each.", show_default=False),
    ] = None
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="COLUMN", help="A column to leave out; repeat for each.", show_default=False),
    ] = None
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="COLUMN:KIND",
            help="What a feature column is: numeric, boolean, categorical, date or text; inferred otherwise.",
            show_default=False,
        ),
    ] = None
    where: Annotated[
        str | None, typer.Option("--where", metavar="SQL", help="A condition that rows must meet.", show_default=False)
    ] = None
    split: Annotated[
        str, typer.Option("--split", metavar="HOW", help="How rows are divided: random, stratified, group or time.")
    ] = "random"
    split_column: Annotated[
        str | None,
        typer.Option("--split-column", metavar="COLUMN", help="The classes, groups or times.", show_default=False),
    ] = None
    separator: Annotated[
        str | None, typer.Option("--separator", metavar="CHAR", help="Between a text file's fields.", show_default=False)
    ] = None

    def load(self) -> DataSet:
        """The data set that the options name; what a table's columns were taken for is printed on standard error."""
        from polytask.data import multi_images, multidigits
        from polytask.data.table import load_table

        if self.data == "multidigits" or Path(self.data).is_dir():
            for option in ("target", "drop", "kind", "where", "split_column", "separator"):
                if getattr(self, option):
                    raise InputError(f"{self.data}: --{option.replace('_', '-')} is for tables; choose tasks by --task")
            chosen = {"tasks": self.task} if self.task else {}
            return multidigits(**chosen) if self.data == "multidigits" else multi_images(self.data, **chosen)
        if self.task:
            raise InputError(f"{self.data}: --task is for image data; name the columns to predict by --target")
        return load_table(
            self.data,
            self.target or [],
            drop=self.drop or [],
            kinds=dict(_column_and_kind(kind) for kind in self.kind or []),
            where=self.where,
            split=self.split,
            split_column=self.split_column,
            separator=self.separator,
        )


def accepts(options: Callable[..., Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """A decorator for a command whose options are the fields of the dataclass ``options``: it is called with one of them."""

    def decorate(command: Callable[[Options], None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            command(options(**values))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.signature(options, eval_str=True)  # type: ignore[attr-defined]
        return run

    return decorate


def tell(lines: Sequence[str], style: str = "") -> None:
    """Print notes for a person on standard error, where they do not mix with results."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=True)


def tell_about(data: DataSet) -> None:
    """Print what a data set's columns were taken for and what to be wary of, on standard error."""
    sizes = ", ".join(f"{len(getattr(data, part)):,} {part}" for part in ("train", "validation", "test"))
    tell([f"{data.name}: {sizes} rows", *data.provenance.get("report", [])], "dim")
    tell([f"warning: {line}" for line in data.provenance.get("warnings", [])], "yellow")


def show(table: Table) -> None:
    """Print a table of results on standard output."""
    from rich.console import Console

    Console(highlight=False).print(table)


def show_json(value: Any) -> None:
    """Print a result for a machine on standard output: indented JSON, ``null`` for what is undefined."""
    from polytask.training.history import finite

    json.dump(finite(value), sys.stdout, indent=2)
    sys.stdout.write("\n")


def metrics_table(title: str, metrics: Mapping[str, Mapping[str, float]], rows: Mapping[str, int]) -> Table:
    """Metrics as a table: a row for each task, its main metric first, and how many labels they are over."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    table.add_column("task")
    table.add_column("labels", justify="right")
    table.add_column("metrics")
    for name, values in metrics.items():
        main, *others = (f"{metric} {value:.4f}" for metric, value in values.items())
        table.add_row(name, f"{rows[name]:,}", f"[bold]{main}[/bold]  [dim]{'  '.join(others)}[/dim]")
    return table


def _column_and_kind(text: str) -> tuple[str, str]:
    column, colon, kind = text.rpartition(":")
    if not colon:
        raise InputError(f"--kind {text!r}: expected COLUMN:KIND, such as zip:categorical")
    return column, kind
