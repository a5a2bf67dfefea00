"""A whole run: a data set and a recipe become a saved model. Killed at any point and started again, it goes on."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from polytask.data.examples import DataSet
from polytask.errors import InputError, PolytaskError, optional
from polytask.files import check_replaceable, read_json, write_json
from polytask.method import Method
from polytask.model import Model
from polytask.store import save
from polytask.training import Fitted, Metrics, evaluate, fit
from polytask.training import fabric as default_fabric
from polytask.training.checkpoint import FILE as CHECKPOINT
from polytask.training.history import FILE as HISTORY
from polytask.training.history import finite

IDENTITY = "run.json"
"""The file of an unfinished run that says which run it is."""

REHEARSED_STEPS = 5
REHEARSED_ROWS = 512


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Args:
        method: the way of sharing and the balancer.
        seed: of the initial weights and of the order of examples.
        settings: keyword arguments of `polytask.fit`, over the defaults that suit the data (``DataSet.settings``).
    """

    method: Method = field(default_factory=Method)
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def settings_for(self, data: DataSet) -> dict[str, Any]:
        """The keyword arguments of `polytask.fit` on ``data``; `InputError` when how long is stated twice, or is nothing."""
        settings = {"batch_size": 64, "epochs": 10, **data.settings}
        settings["batch_size"] = min(settings["batch_size"], len(data.train))
        if "steps" in self.settings:
            del settings["epochs"]
        settings |= self.settings
        if "steps" in settings and "epochs" in settings:
            raise InputError("both steps and epochs are given, expected one of them")
        if settings.get("epochs", 1) <= 0:
            raise InputError(f"epochs is {settings['epochs']}, expected more than 0")
        return settings

    def build(self, data: DataSet) -> Model:
        """A new model for ``data``; its weights are a function of the seed."""
        torch.manual_seed(self.seed)
        return Model(data.encoder(), data.tasks, self.method.build_sharing())


def fit_and_save(
    data: DataSet,
    out: Path | str,
    recipe: Recipe,
    *,
    fabric: Any = None,
    progress: bool = False,
    tensorboard: bool = False,
) -> tuple[Fitted, Metrics]:
    """Train a model by ``recipe`` and save it to the folder ``out``; also its metrics on the test split, by task.

    While it trains, its checkpoint and history are in the folder ``OUT.run``: the same call after a kill goes on from
    there and ends with the same bits. A finished model's folder holds the history (and TensorBoard files), and ``OUT.run``
    is gone. Whatever the precision of training, the model is saved in single precision.

    Args:
        data: what to train on.
        out: a new or empty folder, or an earlier model, which is replaced at the end.
        recipe: how.
        fabric: devices, precision and processes (see `polytask.training.fabric`), launched.
        progress: show a live display on standard error.
        tensorboard: write TensorBoard files too.

    Raises:
        InputError: before training, when something cannot be: see `polytask.fit`; ``out`` holds other files; or ``OUT.run``
            holds an unfinished run of another recipe or other data.
        TrainingError: a loss is not finite; the last good state stays in ``OUT.run``.
    """
    out = Path(out)
    check_replaceable(out)
    fabric = fabric or default_fabric()
    run = run_folder(out)
    settings = recipe.settings_for(data)
    identity = _identity(data, recipe, settings, fabric)
    check_same_run(run, identity)
    if fabric.is_global_zero:
        write_json(run / IDENTITY, identity)
    model = recipe.build(data)
    try:
        fitted = fit(
            model,
            data.train,
            data.validation,
            balance=recipe.method.build_balancer(),
            seed=recipe.seed,
            out=run,
            fabric=fabric,
            progress=progress,
            tensorboard=tensorboard,
            **settings,
        )
    except PolytaskError:
        if fabric.is_global_zero and not (run / CHECKPOINT).exists():  # nothing to go on from
            shutil.rmtree(run)
        raise
    model.float()  # weights of half precision are exact in single precision, and then inputs need no conversion
    test = evaluate(model, data.test)
    if fabric.is_global_zero:
        described = {
            "method": recipe.method.name,
            "seed": recipe.seed,
            "settings": settings,
            "precision": identity["precision"],
            "processes": fabric.world_size,
            "steps": fitted.steps,
            "selected_step": fitted.step,
            "seconds": fitted.seconds,
            "validation": fitted.metrics,
            "test": test,
        }
        kept = [path for path in (run / HISTORY, run / "tensorboard") if path.exists()]
        save(model, out, dataset=data, recipe=described, beside=kept)
        shutil.rmtree(run)
    fabric.barrier()
    return fitted, test


@dataclass(frozen=True)
class Rehearsal:
    """What a run would take.

    Attributes:
        parameters: of the model.
        steps: that the run would take at most.
        step_seconds: the time of one step here, on one device.
        disk_bytes, free_bytes: that the run needs on the output's disk, and what is free there.
    """

    parameters: int
    steps: int
    step_seconds: float
    disk_bytes: int
    free_bytes: int


def rehearse(data: DataSet, out: Path | str, recipe: Recipe, *, fabric: Any = None, tensorboard: bool = False) -> Rehearsal:
    """Check everything that `fit_and_save` would need, by a few steps and one evaluation whose result is thrown away.

    Nothing is written. Raises what `fit_and_save` would raise, and `InputError` when the output cannot be written or the
    disk has too little room.
    """
    out = Path(out)
    check_replaceable(out)
    fabric = fabric or default_fabric()
    settings = recipe.settings_for(data)
    check_same_run(run_folder(out), _identity(data, recipe, settings, fabric))
    if tensorboard:
        optional("tensorboard", "tensorboard")
    epochs = settings.pop("epochs", 0)
    steps = settings.pop("steps", None) or max(1, round(epochs * (len(data.train) // settings["batch_size"])))
    model = recipe.build(data)
    parameters = sum(p.numel() for p in model.parameters())
    # A checkpoint holds weights, two moments and the best weights; the new one is written beside the old, then the model.
    needed = 9 * sum(p.numel() * p.element_size() for p in model.parameters())
    free = check_room(out, needed)
    clock = Clock()
    fit(
        model,
        data.train,
        data.validation.subset(torch.arange(min(REHEARSED_ROWS, len(data.validation)))),
        balance=recipe.method.build_balancer(),
        seed=recipe.seed,
        steps=REHEARSED_STEPS,
        evaluate_every=REHEARSED_STEPS,
        fabric=fabric,
        listeners=[clock],
        **settings,
    )
    return Rehearsal(parameters, steps, clock.median(), needed, free)


def run_folder(out: Path) -> Path:
    """Where an unfinished run for the model ``out`` is kept."""
    return out.with_name(f"{out.name}.run")


def _identity(data: DataSet, recipe: Recipe, settings: Mapping[str, Any], fabric: Any) -> dict[str, Any]:
    """What must be the same for a run to go on: the recipe, the precision, the tasks and the data, as JSON values."""
    values = {
        "method": recipe.method.name,
        "seed": recipe.seed,
        "precision": str(fabric.strategy.precision.precision),
        **settings,
        "tasks": [task.to_dict() for task in data.tasks],
        "data": dict(data.provenance),
    }
    identity: dict[str, Any] = json.loads(json.dumps(finite(values)))
    return identity


def check_same_run(run: Path, identity: Mapping[str, Any]) -> None:
    """Raise `InputError` when the folder ``run`` has a checkpoint of a run that is not this one."""
    if not (run / CHECKPOINT).exists():
        return
    before = read_json(run / IDENTITY)
    changed = [key for key in {**before, **identity} if before.get(key) != identity.get(key)]
    if changed:
        named = [key if key in ("tasks", "data") else f"{key} {before.get(key)} -> {identity.get(key)}" for key in changed]
        raise InputError(
            f"{run}: holds an unfinished run that differs in {', '.join(named)}: "
            "finish it, remove the folder, or choose another output"
        )


def check_room(out: Path, needed: int) -> int:
    """The bytes that are free on the disk of ``out``; `InputError` where they are too few, or nothing can be written."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    if free < needed:
        raise InputError(f"{out}: its disk has {free:,} bytes free, the run needs about {needed:,}")
    return free


class Clock:
    """Hears of steps and takes the time between them."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, step: int, losses: dict[str, float]) -> None:
        self.times.append(time.perf_counter())

    def record(self, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass

    def median(self) -> float:
        return statistics.median(after - before for before, after in zip(self.times, self.times[1:], strict=False))
