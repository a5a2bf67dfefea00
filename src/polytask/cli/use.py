"""Commands on a saved model: ``evaluate``, ``predict``, ``explain``, ``diff`` and ``export``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polytask.cli import events
from polytask.cli.data import DATA_HELP, labelled, metrics_table, plain_table, show, show_json, tell
from polytask.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from polytask.comparison.diff import TaskDifference

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that 'fit' saved.", show_default=False)]
Data = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP, show_default=False)]
Separator = Annotated[
    str | None, typer.Option(metavar="CHAR", help="Between a text file's fields.", show_default="comma, or tab for .tsv")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]


def evaluate(model: Model, data: Data, separator: Separator = None, json: Json = False) -> None:
    """Measure a saved model on labelled data.

    Of a table every labelled row counts, of image data the test split. Of a model's own graph the test split counts, of
    another graph every labelled node and graph, and 30 % of the links, which the model is not shown. Of events
    all of a file count, which come after those that the model's memory has seen.
    """
    from polytask.store import load
    from polytask.training import evaluate as measure

    if events.is_model(model):
        return events.evaluate(model, Path(data), separator, json)
    saved = load(model)
    examples = labelled(saved, data, separator)
    metrics = measure(saved.model, examples)
    if json:
        show_json(metrics)
    else:
        show(f"{model} on {data}", metrics_table(list(saved.model.tasks.values()), metrics, examples))


def predict(
    model: Model,
    data: Annotated[Path, typer.Argument(metavar="NEW", help="A table with the model's columns.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="OUT", help="The file to write: .parquet, .csv, .tsv or .arrow.", show_default=False
        ),
    ],
    separator: Separator = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            "--graph",
            metavar="OTHER",
            help="Ask a model of a graph about another graph, with the same features.",
            show_default=False,
        ),
    ] = None,
    observe: Annotated[
        Path | None,
        typer.Option(
            "--observe",
            metavar="MODEL2",
            help="Of events: let each row enter the memory after it was scored, and save the model in this folder.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Rows of --observe that are scored before they enter; more is faster, and sees less.")
    ] = 1,
) -> None:
    """Predict every row of a table of any size.

    The output has a column with the row's number, and for each task the class and its probabilities, or the value. Rows
    that cannot be read are reported by number on standard error and are not in the output; the exit code is then 3.
    A model of events says of each row's source, target and timestamp how probable the event is, by what its memory has seen.
    """
    from polytask.predicting import on_graph, predict_table
    from polytask.store import load

    def report(row: int, reason: str) -> None:
        tell([f"{data}: row {row}: {reason}"], "yellow")

    if events.is_model(model):
        if graph is not None:
            raise InputError(f"{model}: --graph is for models of graphs")
        done = events.predict(model, data, out, observe, batch, separator, report)
    elif observe is not None:
        raise InputError(f"{model}: --observe is for models of events")
    else:
        saved = load(model)
        if graph is not None:
            saved = on_graph(saved, graph)
        done = predict_table(saved, data, out, separator=separator, on_bad=report)
    unread = f", {done.bad:,} could not be read" if done.bad else ""
    tell([f"{out}: {done.rows:,} rows predicted{unread}"])
    if done.bad:
        raise typer.Exit(3)


def explain(model: Model, json: Json = False) -> None:
    """Say what a saved model is made of.

    Its tasks and the parameters that each uses, the recipe, the data, the versions and the hashes.
    """
    from polytask.store import read_about

    about = read_about(model)
    if json:
        show_json(about)
        return
    shared, own = about["parameters"]["shared"], about["parameters"]["tasks"]
    title = f"{model}: {shared + sum(own.values()):,} parameters, {shared:,} of them used by every task"
    show(title, _tasks_table(about))
    data = about["data"] or {}
    sections = {
        "recipe": {key: value for key, value in about["recipe"].items() if key not in ("validation", "test")},
        "model": {key: about.get(key) for key in ("events", "encoder", "sharing", "inputs")},
        "data": {key: value for key, value in data.items() if key not in ("report", "warnings")},
        "versions": {
            "polytask": about["polytask"],
            **about["versions"],
            "format": about["format"],
            "written": about["written"],
        },
        "sha256": about["files"],
    }
    for title, values in sections.items():
        show(f"\n{title}", _section(values))


def diff(
    model_a: Annotated[Path, typer.Argument(metavar="MODEL_A", help="The model in use.", show_default=False)],
    model_b: Annotated[Path, typer.Argument(metavar="MODEL_B", help="Its proposed successor.", show_default=False)],
    data: Data,
    separator: Separator = None,
    resamples: Annotated[int, typer.Option(min=1000, help="Bootstrap samples.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    json: Json = False,
) -> None:
    """Compare two models on the same rows, task by task.

    Gives paired differences of each task's main metric with 95 % bootstrap intervals over rows, and a verdict that holds
    for all tasks together. The exit code is 1 when MODEL_B is worse at some task, so that a script can stop a promotion.
    """
    from rich.console import Console
    from rich.progress import Progress

    from polytask.comparison.diff import diff as compare
    from polytask.store import load

    a, b = load(model_a), load(model_b)
    examples_a, examples_b = (labelled(saved, data, separator) for saved in (a, b))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("resampling rows", total=resamples)
        differences = compare(
            a.model,
            b.model,
            examples_a,
            examples_b,
            resamples=resamples,
            seed=seed,
            progress=lambda done: progress.update(bar, completed=done),
        )
    if json:
        show_json([asdict(difference) for difference in differences])
    else:
        title = f"{model_a} (A) and {model_b} (B) on {len(examples_a):,} rows of {data}"
        show(title, _differences_table(differences))
    if any(difference.verdict == "worse" for difference in differences):
        raise typer.Exit(1)


def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .onnx file to write.", show_default=False)],
    check: Annotated[
        str | None,
        typer.Option("--check", metavar="DATA", help="Labelled rows to check on.", show_default="made-up rows"),
    ] = None,
) -> None:
    """Export a saved model to ONNX.

    The file is written only if onnxruntime's predictions agree with the model's.
    """
    from polytask.export import SAMPLE_ROWS, export_onnx
    from polytask.store import load

    saved = load(model)
    inputs = labelled(saved, check)[:SAMPLE_ROWS][0] if check is not None else None
    differences = export_onnx(saved, out, inputs)
    tell([f"{out}: written; onnxruntime differs by {max(differences.values()):.1e} at most"])


def register(app: typer.Typer) -> None:
    """Add this group's commands to ``app``."""
    for command in (evaluate, predict, explain, diff, export):
        app.command()(command)


def _tasks_table(about: Mapping[str, Any]) -> Table:
    shared, own = about["parameters"]["shared"], about["parameters"]["tasks"]
    table = plain_table("task", "kind", "metric", ">validation", ">test", ">own parameters", ">uses")
    for task in about["tasks"]:
        name, metric = task["name"], task["metric"]
        figures = [about["recipe"].get(part, {}).get(name, {}).get(metric) for part in ("validation", "test")]
        shown = ["" if figure is None else f"{figure:.4f}" for figure in figures]
        table.add_row(name, task["kind"], metric, *shown, f"{own[name]:,}", f"{shared + own[name]:,}")
    return table


def _section(values: Mapping[str, Any]) -> Table:
    table = plain_table("", "")
    table.show_header = False
    for key, value in values.items():
        if value is not None:
            table.add_row(key, _brief(value))
    return table


def _brief(value: Any) -> str:
    """JSON values as a person writes them: ``name tabular, settings (width 256, depth 2)``."""
    if isinstance(value, Mapping):
        parts = ((key, item, isinstance(item, Mapping)) for key, item in value.items() if item not in (None, [], {}))
        return ", ".join(f"{key} ({_brief(item)})" if nested else f"{key} {_brief(item)}" for key, item, nested in parts)
    if isinstance(value, list):
        return " ".join(_brief(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _differences_table(differences: list[TaskDifference]) -> Table:
    table = plain_table("task", "metric", ">A", ">B", ">B - A", "95 % interval", "B is")
    styles = {"better": "green", "worse": "bold red", "undecided": "dim"}
    for d in differences:
        table.add_row(
            d.task,
            f"{d.metric} {'↑' if d.higher_is_better else '↓'}",
            f"{d.a:.4f}",
            f"{d.b:.4f}",
            f"{d.difference:+.4f}",
            f"{d.low:+.4f} {d.high:+.4f}",
            f"[{styles[d.verdict]}]{d.verdict}[/]",
        )
    return table
