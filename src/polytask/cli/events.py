"""What the commands do with streams of events: ``fit --events``, and ``evaluate`` and ``predict`` on a model of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from polytask.cli.data import plain_table, show, show_json, tell, tell_about
from polytask.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from polytask.cli.train import FitOptions
    from polytask.data.temporal import EventData
    from polytask.fitting import Rehearsal
    from polytask.predicting import Predicted
    from polytask.training import Metrics

PAPERS = ("polytask.papers.nat", "polytask.papers.pres")
"""Modules that enrol models of events."""

OTHERS = {
    **dict.fromkeys(("data", "graph"), "is other data, expected one of both"),
    **dict.fromkeys(
        ("target", "task", "drop", "kind", "where", "split", "split_column"), "is for tables, images and graphs"
    ),
    "text_encoder": "is for tables",
    **dict.fromkeys(("steps", "accumulate"), "would cut a pass, in which the memory goes on: choose --epochs"),
    **dict.fromkeys(("devices", "nodes"), "is for several processes, and each would need the whole stream"),
}
"""Options that make no sense with --events, and why."""


def fit(options: FitOptions) -> None:
    """Train a model of events and save it with its memory."""
    from polytask.events import fit_and_save
    from polytask.fitting import run_folder

    data, name = _load(options)
    recipe, fabric, talk = options.recipe(), options.fabric(), not options.quiet
    fabric.launch()
    if talk:
        tell_about(data)
        if run_folder(options.out).exists():
            tell([f"going on from {run_folder(options.out)}"])
    fitted, test = fit_and_save(
        data, options.out, recipe, name, fabric=fabric, progress=talk, tensorboard=options.tensorboard
    )
    title = f"{options.out}: {name}, {recipe.method.balance}, step {fitted.step} of {fitted.steps}"
    show(f"{title}, on the test events and as many random pairs", _table(test, len(data.test)))


def rehearse(options: FitOptions) -> Rehearsal:
    """Check all that `fit` would need."""
    from polytask.events import rehearse as check

    data, name = _load(options)
    tell_about(data)
    return check(data, options.out, options.recipe(), name, fabric=options.fabric(), tensorboard=options.tensorboard)


def is_model(path: Path) -> bool:
    """Whether the folder has a model of events."""
    from polytask.store import EVENTS, read_about

    return EVENTS in read_about(path)


def evaluate(model: Path, data: Path, separator: str | None, json: bool) -> None:
    """Measure a model on events after those that its memory has seen."""
    from polytask.events import evaluate_events, load

    _enrol()
    metrics, count = evaluate_events(load(model), data, separator=separator)
    if json:
        show_json(metrics)
    else:
        show(f"{model} on {data} and as many random pairs", _table(metrics, count))


def predict(
    model: Path,
    data: Path,
    out: Path,
    observe: Path | None,
    batch: int,
    separator: str | None,
    report: Callable[[int, str], None],
) -> Predicted:
    """Score the event in each row; with ``observe`` let it enter the memory, and save the model there."""
    from polytask.events import load, predict_events

    _enrol()
    saved = load(model)
    done = predict_events(saved, data, out, observe=observe, batch_size=batch, separator=separator, on_bad=report)
    if observe is not None:
        count, until = saved.model.seen
        tell([f"{observe}: the memory has seen {count:,} events, until {until}"])
    return done


def _load(options: FitOptions) -> tuple[EventData, str]:
    from polytask.data.temporal import load_event_data
    from polytask.events import event_models

    assert options.events is not None
    defaults = {field.name: field.default for field in fields(options)}
    for option, reason in OTHERS.items():
        if getattr(options, option) != defaults[option]:
            said = option.upper() if option == "data" else f"--{option.replace('_', '-')}"
            raise InputError(f"--events {options.events}: {said} {reason}")
    _enrol()
    name = options.model or "tgn"
    event_models[name]  # refuses an unknown one before the file is read
    return load_event_data(options.events, separator=options.separator), name


def _enrol() -> None:
    for module in PAPERS:
        import_module(module)


def _table(metrics: Metrics, events: int) -> Table:
    table = plain_table("task", ">events", "metric", ">value")
    for task, values in metrics.items():
        for place, (metric, value) in enumerate(values.items()):
            told = ("", "") if place else (task, f"{events:,}")
            table.add_row(*told, metric, f"{value:.4f}", style="dim" if place else None)
    return table
