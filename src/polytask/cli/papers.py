"""``polytask papers`` and ``polytask reproduce``: the catalogue, and the claims as programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this file's commands to ``app``."""
    app.command()(papers)
    app.command()(reproduce)


def papers(
    words: Annotated[list[str] | None, typer.Argument(help="Only papers that contain all these words.")] = None,
    table: Annotated[Path | None, typer.Option(help="Print this results.json as markdown tables instead.")] = None,
) -> None:
    """List the catalogue of published systems, or search it by title, family, verb or status."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from polytask.errors import InputError
    from polytask.files import read_json
    from polytask.papers import search
    from polytask.papers._table import markdown

    if table:
        print(markdown(read_json(table)))
        return
    found = search(words or [])
    if not found:
        raise InputError(f"no paper contains {' and '.join(words or [])}; 'polytask papers' lists all")
    listing = Table("paper", "title, family and verbs", "status", box=box.SIMPLE_HEAD)
    for entry in found:
        about = f"{escape(entry.title)}\n[dim]{entry.family} · {', '.join(entry.verbs)}[/]"
        listing.add_row(f"[bold]{entry.slug}[/]", about, "[green]done[/]" if entry.done else "[dim]not yet[/]")
    Console().print(listing)
    done = sum(entry.done for entry in found)
    print(f"{len(found)} papers, {done} done")


def reproduce(
    slugs: Annotated[list[str] | None, typer.Argument(help="Papers, as 'polytask papers' names them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All papers that are done.")] = False,
    seeds: Annotated[int | None, typer.Option(help="Seeds for each claim, instead of its own number.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one for each core.", min=1)] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of data sets; by default $POLYTASK_DATA.")] = None,
    out: Annotated[Path, typer.Option(help="Where results.json, the plots and finished seeds go.")] = Path("claims"),
) -> None:
    """Run the claims of papers over seeds: claimed against measured, with a 95 % interval and a verdict.

    Finished seeds are kept in OUT, so that a run that was stopped goes on. Exit code 1 when a seed failed.
    """
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from polytask.errors import InputError
    from polytask.papers import catalogue, load
    from polytask.papers._reproduce import reproduce
    from polytask.papers._table import measured

    if bool(slugs) == every:
        raise InputError("name the papers to reproduce, or pass --all")
    chosen = [load(slug) for slug in (dict.fromkeys(slugs or []) or [entry.slug for entry in catalogue() if entry.done])]
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        running = bar.add_task("starting")
        outcomes = reproduce(
            chosen,
            out=out,
            data=data,
            seeds=seeds,
            workers=workers,
            progress=lambda done, total, label: bar.update(
                running, completed=done, total=total, description=label or "running"
            ),
        )
    colours = {"holds": "green", "contradicted": "red", "undecided": "yellow"}
    listing = Table("paper", "claim", "the paper reports", "measured here", "verdict", box=box.SIMPLE_HEAD)
    for outcome in outcomes:
        claim, evidence = outcome.claim, outcome.evidence
        if evidence:
            verdict = f"[{colours[evidence.verdict]}]{evidence.verdict}[/]"
            found = measured(asdict(evidence))
        else:
            verdict, found = "failed" if outcome.failed else "skipped", outcome.reason
        listing.add_row(outcome.paper.slug, claim.statement, claim.claimed, found, verdict)
    console.print(listing)
    if any(outcome.evidence for outcome in outcomes):
        print(f"written: {out / 'results.json'} and a plot for each paper")
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)
