"""``polytask compare``: which tasks help each other, and which method to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from polytask.cli.data import DataOptions, accepts, show, tell, tell_about


@dataclass(frozen=True, kw_only=True)
class CompareOptions(DataOptions):
    """What to compare, how thoroughly, and where."""

    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where results.json, report.html and finished trials go.")
    ] = Path("comparison")
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="NAMES",
            help="Methods, separated by commas: SHARING+BALANCER, either half, all, all-sharing, all-balancers.",
        ),
    ] = "hard+equal,hard+uncertainty,mmoe+equal,mmoe+uncertainty"
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Paired seeds.")] = 5
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", help="Steps of a trial; by default what suits the data.", show_default=False),
    ] = None
    lr: Annotated[
        list[float] | None,
        typer.Option(
            "--lr", metavar="RATE", help="A learning rate to try for each method; repeat for more.", show_default=False
        ),
    ] = None
    weight_trials: Annotated[
        int, typer.Option("--weight-trials", metavar="N", help="Static weights tried for the control; 0 leaves it out.")
    ] = 8
    transfer: Annotated[
        bool | None,
        typer.Option(
            "--transfer/--no-transfer", help="Train every pair of tasks; by default up to 8 tasks.", show_default=False
        ),
    ] = None
    equal_time: Annotated[
        bool, typer.Option("--equal-time/--no-equal-time", help="Train slower methods again for the plain sum's time.")
    ] = True
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes; by default one a core.", show_default=False)
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Run trials on a Ray cluster; 'local' starts one.", show_default=False
        ),
    ] = None


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("compare")(compare)


@accepts(CompareOptions)
def compare(options: CompareOptions) -> None:
    """Train tasks alone and together in several ways, and report what helped, with intervals."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from polytask.comparison import compare as run
    from polytask.report import terminal_table

    data = options.load()
    tell_about(data)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)
        results = run(
            data,
            [name.strip() for name in options.methods.split(",") if name.strip()],
            seeds=options.seeds,
            steps=options.steps,
            learning_rates=options.lr,
            weight_trials=options.weight_trials,
            transfer=options.transfer,
            equal_time=options.equal_time,
            out=options.out,
            workers=options.workers,
            ray=options.ray,
            progress=lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total),
        )
        bar.update(task, description="done", total=bar.tasks[0].completed)
    show(terminal_table(results))
    tell([f"results in {options.out / 'results.json'}, the report in {options.out / 'report.html'}"])
