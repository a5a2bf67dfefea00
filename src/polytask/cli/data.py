"""What the commands share: options declared once, the data that a command names, and how results are printed."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from polytask.errors import InputError, suggest

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from polytask.data import DataSet, Examples
    from polytask.data.temporal import EventData
    from polytask.store import Saved
    from polytask.task import Task
    from polytask.training import Metrics

Options = TypeVar("Options")

DATA_HELP = "A table (CSV, TSV, gzip too, Parquet, Arrow), 'multidigits', a folder of idx image files, a graph, or events."


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data to train on, and how a table becomes a data set. Options of every command that trains."""

    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A table (CSV, TSV, gzip too, Parquet, Arrow), 'multidigits', or a folder of idx image files.",
            show_default=False,
        ),
    ] = None
    graph: Annotated[
        Path | None,
        typer.Option(
            "--graph",
            metavar="DIR",
            help="In place of DATA: tables edges, nodes and graphs, ogb-style files, or a .npz or torch_geometric .pt file.",
            show_default=False,
        ),
    ] = None
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", metavar="COLUMN[:KIND]", help="A column to predict; repeat for each.", show_default=False
        ),
    ] = None
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="A task of images, or node:, link: or graph:COLUMN[:KIND] of a graph, also link:exists; repeat for each.",
            show_default=False,
        ),
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

    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder",
            metavar="NAME",
            help="A pretrained transformer to read columns of text by: minilm, or a folder; else words are counted.",
            show_default=False,
        ),
    ] = None

    def load(self) -> DataSet:
        """The data set that the options name; what a table's columns were taken for is printed on standard error."""
        from polytask.data import multi_images, multidigits
        from polytask.data.graph import load_graph_tasks
        from polytask.data.table import load_table

        if self.graph is not None:
            if self.data is not None:
                raise InputError(f"{self.data}: both DATA and --graph {self.graph} are given, expected one of them")
            self._refuse_options_of_tables(str(self.graph))
            return load_graph_tasks(self.graph, self.task or [])
        if self.data is None:
            raise InputError("no data: expected a table, a folder of images or 'multidigits', or --graph")
        if self.data == "multidigits" or Path(self.data).is_dir():
            self._refuse_options_of_tables(self.data)
            chosen: dict[str, Any] = {"tasks": self.task} if self.task else {}
            return multidigits(**chosen) if self.data == "multidigits" else multi_images(self.data, **chosen)
        if not Path(self.data).exists() and not Path(self.data).suffix:
            known = suggest(self.data, ["multidigits"])
            raise InputError(f"{self.data}: no such file or folder, nor built-in data: {known}")
        if self.task:
            raise InputError(f"{self.data}: --task is for images and graphs; name the columns to predict by --target")
        return load_table(
            self.data,
            self.target or [],
            drop=self.drop or [],
            kinds=dict(_column_and_kind(kind) for kind in self.kind or []),
            where=self.where,
            split=self.split,
            split_column=self.split_column,
            separator=self.separator,
            text_encoder=self.text_encoder,
        )

    def _refuse_options_of_tables(self, data: str) -> None:
        for option in ("target", "drop", "kind", "where", "split_column", "separator", "text_encoder"):
            if getattr(self, option):
                raise InputError(f"{data}: --{option.replace('_', '-')} is for tables; choose tasks by --task")


def labelled(saved: Saved, data: str, separator: str | None = None) -> Examples:
    """The rows to judge a saved model by: a table's labelled rows, the test split of images or of the model's own
    graph, or what is known of another graph, which the model then looks at."""
    from polytask.data import multi_images, multidigits
    from polytask.data.graph import GraphSchema
    from polytask.files import sha256
    from polytask.predicting import graph_examples, read_examples

    tasks = list(saved.model.tasks)
    if isinstance(saved.schema, GraphSchema):
        return graph_examples(saved, data)
    if data == "multidigits":
        return multidigits(tasks).test
    if Path(data).is_dir():
        return multi_images(data, tasks).test
    examples = read_examples(saved, data, separator=separator)
    if (saved.about["data"] or {}).get("sha256") == sha256(data):
        tell([f"warning: {saved.path} was trained on rows of {data}: these figures flatter it"], "yellow")
    return examples


def accepts(options: Callable[..., Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """A decorator for a command whose options are the fields of the dataclass ``options``: it is called with one of them."""

    hints = get_type_hints(options, include_extras=True)
    fields = inspect.signature(options).parameters.values()
    signature = inspect.Signature([field.replace(annotation=hints[field.name]) for field in fields])

    def decorate(command: Callable[[Options], None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            command(options(**values))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature  # type: ignore[attr-defined]
        return run

    return decorate


def tell(lines: Sequence[str], style: str = "") -> None:
    """Print notes for a person on standard error, where they do not mix with results."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=True)


def tell_about(data: DataSet | EventData) -> None:
    """Print what a data set's columns were taken for and what to be wary of, on standard error."""
    sizes = ", ".join(f"{len(getattr(data, part)):,} {part}" for part in ("train", "validation", "test"))
    tell([f"{data.name}: {sizes} rows", *data.provenance.get("report", [])], "dim")
    tell([f"warning: {line}" for line in data.provenance.get("warnings", [])], "yellow")


def show(*parts: RenderableType) -> None:
    """Print results on standard output: tables and the like as they are, a string as a title."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for part in parts:
        if isinstance(part, str):
            console.print(Text(part, style="bold"), soft_wrap=True)
        else:
            console.print(part)


def show_json(value: Any) -> None:
    """Print a result for a machine on standard output: indented JSON, ``null`` for what is undefined."""
    from polytask.training.history import finite

    json.dump(finite(value), sys.stdout, indent=2)
    sys.stdout.write("\n")


def metrics_table(tasks: Sequence[Task], metrics: Metrics, examples: Examples) -> Table:
    """Metrics as a table: for each task its main metric, with the number of labels it is over, then the others."""
    table = plain_table("task", ">labels", "metric", ">value")
    for task in tasks:
        if task.name in metrics:
            values = dict(metrics[task.name])
            labels = int(task.present(examples.targets[task.name]).sum())
            table.add_row(task.name, f"{labels:,}", task.metric, f"{values.pop(task.metric):.4f}")
            for metric, value in values.items():
                table.add_row("", "", metric, f"{value:.4f}", style="dim")
    return table


def plain_table(*columns: str) -> Table:
    """An empty table without lines; a column whose name starts with ``>`` is flush right."""
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def _column_and_kind(text: str) -> tuple[str, str]:
    column, colon, kind = text.rpartition(":")
    if not colon:
        raise InputError(f"--kind {text!r}: expected COLUMN:KIND, such as zip:categorical")
    return column, kind
