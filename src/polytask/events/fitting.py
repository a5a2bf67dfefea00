"""A whole run on a stream: events and a recipe become a saved model that goes on after the last event."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from polytask.data.examples import PARTS
from polytask.data.temporal import EventBatches, EventData
from polytask.errors import InputError, PolytaskError, optional
from polytask.events.model import EventModel
from polytask.events.settings import EventSettings, event_models
from polytask.events.store import save
from polytask.files import check_replaceable, write_json
from polytask.fitting import (
    IDENTITY,
    REHEARSED_STEPS,
    Clock,
    Recipe,
    Rehearsal,
    check_room,
    check_same_run,
    run_folder,
)
from polytask.training import Fitted, Metrics, fit
from polytask.training import fabric as default_fabric
from polytask.training.checkpoint import FILE as CHECKPOINT
from polytask.training.history import FILE as HISTORY
from polytask.training.history import finite

DEFAULTS: Mapping[str, Any] = {"batch_size": 200, "epochs": 10, "lr": 1e-3, "monitor": "links/ap"}
"""Settings of a run, where the recipe has none."""


def fit_and_save(
    data: EventData,
    out: Path | str,
    recipe: Recipe,
    name: str = "tgn",
    *,
    fabric: Any = None,
    progress: bool = False,
    tensorboard: bool = False,
) -> tuple[Fitted, Metrics]:
    """Train a model of events and save it with its memory to the folder ``out``; also its metrics on the test events.

    The weights are those of the epoch after which validation events were predicted best, with the memory of that time. Then
    the validation events enter it, the test events are predicted, and enter it too: the saved model goes on after the last
    event. Negatives are random. As with `polytask.fitting.fit_and_save` a killed run goes on from ``OUT.run``.

    Args:
        data: events.
        out: a new or empty folder, or an earlier model, which is replaced at the end.
        recipe: how; its way of sharing is hard sharing, which is none.
        name: of the model, in `event_models`.
        fabric: the device and the precision, launched; of one process.
        progress: show a live display on standard error.
        tensorboard: write TensorBoard files too.

    Raises:
        InputError: before training, when something cannot be.
        TrainingError: a loss is not finite; the last good state stays in ``OUT.run``.
    """
    out = Path(out)
    check_replaceable(out)
    fabric = fabric or default_fabric()
    run, settings = run_folder(out), settings_for(data, recipe)
    chosen = _chosen(data, name)
    identity = _identity(data, recipe, settings, chosen, name, fabric)
    check_same_run(run, identity)
    write_json(run / IDENTITY, identity)
    model = _built(chosen, recipe)
    train, validation, test = (data.batches(part, settings["batch_size"], recipe.seed) for part in PARTS)
    try:
        fitted = fit(
            model,
            train,
            validation,
            balance=recipe.method.build_balancer(),
            seed=recipe.seed,
            evaluate_every=len(train),
            out=run,
            fabric=fabric,
            progress=progress,
            tensorboard=tensorboard,
            **settings,
        )
    except PolytaskError:
        if not (run / CHECKPOINT).exists():  # nothing to go on from
            shutil.rmtree(run)
        raise
    model.float().eval()
    model.observe(validation)
    measured = model.evaluate(test)
    model.observe(test)
    described = {
        "method": recipe.method.balance,
        "seed": recipe.seed,
        "settings": settings,
        "precision": identity["precision"],
        "steps": fitted.steps,
        "selected_step": fitted.step,
        "seconds": fitted.seconds,
        "negatives": "random",
        "validation": fitted.metrics,
        "test": measured,
    }
    kept = [path for path in (run / HISTORY, run / "tensorboard") if path.exists()]
    known = {"name": data.name, **data.provenance}
    save(model, chosen, data.schema, out, data=known, recipe=described, beside=kept)
    shutil.rmtree(run)
    return fitted, measured


def rehearse(
    data: EventData, out: Path | str, recipe: Recipe, name: str = "tgn", *, fabric: Any = None, tensorboard: bool = False
) -> Rehearsal:
    """Check everything that `fit_and_save` would need, by a few steps and one evaluation whose result is thrown away."""
    out = Path(out)
    check_replaceable(out)
    fabric = fabric or default_fabric()
    settings, chosen = settings_for(data, recipe), _chosen(data, name)
    check_same_run(run_folder(out), _identity(data, recipe, settings, chosen, name, fabric))
    if tensorboard:
        optional("tensorboard", "tensorboard")
    size = settings["batch_size"]
    steps = settings.pop("epochs") * len(data.batches("train", size))
    model = _built(chosen, recipe)
    # A checkpoint holds weights, two moments, the memory, and the best of both; the new one is written beside the old.
    needed = sum(9 * p.numel() * p.element_size() for p in model.parameters())
    needed += sum(5 * b.numel() * b.element_size() for b in model.buffers())
    free = check_room(out, needed)
    clock, few = Clock(), size * REHEARSED_STEPS
    first = data.train[:few]
    fit(
        model,
        EventBatches(first, size),
        EventBatches(data.validation[:few], size, past=data.train),
        balance=recipe.method.build_balancer(),
        seed=recipe.seed,
        steps=REHEARSED_STEPS,
        evaluate_every=REHEARSED_STEPS,
        fabric=fabric,
        listeners=[clock],
        **settings,
    )
    return Rehearsal(sum(p.numel() for p in model.parameters()), steps, clock.median(), needed, free)


def settings_for(data: EventData, recipe: Recipe) -> dict[str, Any]:
    """The keyword arguments of `polytask.fit`; `InputError` for those that a stream cannot have."""
    settings = {**DEFAULTS, **recipe.settings}
    settings["batch_size"] = min(settings["batch_size"], len(data.train))
    epochs = settings["epochs"]
    if epochs != int(epochs) or epochs < 1:
        raise InputError(f"epochs is {epochs}, expected a whole number of passes over the stream")
    settings["epochs"] = int(epochs)
    for what in ("steps", "accumulate"):
        if settings.pop(what, 1) != 1:
            raise InputError(f"{what} makes no sense with events, whose memory goes on from batch to batch: choose epochs")
    if recipe.method.sharing != "hard":
        raise InputError(f"method {recipe.method.name!r}: a model of events shares all it has, expected a balancer alone")
    return settings


def _chosen(data: EventData, name: str) -> EventSettings:
    return event_models[name](len(data.schema.nodes), data.train.width)


def _built(chosen: EventSettings, recipe: Recipe) -> EventModel:
    torch.manual_seed(recipe.seed)
    return chosen.build()


def _identity(
    data: EventData, recipe: Recipe, settings: Mapping[str, Any], chosen: EventSettings, name: str, fabric: Any
) -> dict[str, Any]:
    """What must be the same for a run to go on, as JSON values; `InputError` for several processes."""
    if fabric.world_size > 1:
        raise InputError(f"{fabric.world_size} processes, expected one: each would need the whole stream")
    values = {
        "model": name,
        **asdict(chosen),
        "method": recipe.method.name,
        "seed": recipe.seed,
        "precision": str(fabric.strategy.precision.precision),
        **settings,
        "data": dict(data.provenance),
    }
    identity: dict[str, Any] = json.loads(json.dumps(finite(values)))
    return identity
