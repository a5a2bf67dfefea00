"""`fit`: what a user asks of a training run, checked before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer

from polytask.balance import Balancer, BilevelWeighting, TorchJD, balancers
from polytask.data.stream import as_stream
from polytask.errors import InputError
from polytask.model import Losses
from polytask.training.display import Display
from polytask.training.hardware import fabric as default_fabric
from polytask.training.held_out import HeldOut, further
from polytask.training.history import HistoryFile, Listener, TensorBoard
from polytask.training.judge import Judge
from polytask.training.run import Fitted, Run, ScheduleFactory

OptimizerFactory: TypeAlias = Callable[[list[dict[str, Any]]], Optimizer]


def fit(
    model: Losses,
    train: Any,
    validation: Any = None,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 64,
    balance: str | torch.nn.Module = "equal",
    optimizer: OptimizerFactory | None = None,
    lr: float | Mapping[str, float] = 1e-3,
    weight_decay: float = 0.0,
    schedule: str | ScheduleFactory = "cosine",
    accumulate: int = 1,
    clip: float | None = None,
    monitor: str | None = None,
    baseline: Mapping[str, float] | None = None,
    patience: int | None = None,
    evaluate_every: int | None = None,
    conflicts: bool = False,
    seed: int = 0,
    out: Path | str | None = None,
    checkpoint_every: int | None = None,
    fabric: Any = None,
    listeners: Sequence[Listener] = (),
    progress: bool = False,
    tensorboard: bool = False,
) -> Fitted:
    """Train ``model`` on several tasks at once, and leave it with the weights that were best on ``validation``.

    Args:
        model: a `polytask.Model`, or any module with the methods of `polytask.model.Losses`.
        train: `polytask.Examples`; a data loader of ``(inputs, {task: target})``; or a mapping (or `polytask.Mixture`) from
            each task to data of its own.
        validation: `Examples`, a data loader, or a mapping from each task to one of them, read in order; for selecting
            weights and stopping early.
        steps, epochs: how long: optimizer steps, or passes over ``train``. 10 epochs when neither is given.
        batch_size: examples in a step, over all processes and accumulated batches (for `Examples`; a loader has its own).
        balance: a balancer, or its name; or an aggregator of torchjd.
        optimizer: called with parameter groups; AdamW with ``lr`` and ``weight_decay`` by default.
        lr, weight_decay: of the default optimizer. Rates that differ are given by patterns of parameters' names, the first
            that fits counts: ``{"*.logits.*": 0.1, "*": 1e-3}``; any optimizer is given them in its groups.
        schedule: ``"cosine"`` (to 0 at the last step), ``"constant"``, or a function of optimizer and steps.
        accumulate: batches whose gradients make one step.
        clip: the largest norm of the gradient; ``None`` does not clip.
        monitor: what the best weights are best at. ``"skill"``: mean over tasks of `polytask.measure.skill` (default);
            ``"delta_m"``: `polytask.measure.delta_m` over ``baseline`` (default when that is given); a task's name: its main
            metric; ``"TASK/METRIC"``: one metric; ``"loss"``: the sum of validation losses (default for modules that only
            have ``losses``; with ``evaluate(data)`` they can have a metric monitored too).
        baseline: the main metric of a single-task model by task, for ``delta_m``.
        patience: stop after this many evaluations without a better one; ``None`` never stops early.
        evaluate_every: steps between evaluations; by default twenty evaluations a run.
        conflicts: also record the cosines of task gradients at each evaluation, on the last training batch.
        seed: of the order of examples and of random layers.
        out: a folder for ``history.jsonl`` and the checkpoint. A run that was killed goes on from it and ends with the same
            bits; a run that was finished is only read.
        checkpoint_every: steps between checkpoints; by default one at each evaluation.
        fabric: a launched ``lightning_fabric.Fabric`` for other devices, precisions and several processes (see
            `polytask.training.fabric`); one device in single precision by default.
        listeners: told of every step and record.
        progress: show a live display on standard error.
        tensorboard: write TensorBoard files to ``out`` too.

    Raises:
        InputError: settings that cannot be, before the first step.
        TrainingError: a loss that is NaN or infinite, naming the task and the step; the last good state is in ``out``.
    """
    if steps is not None and epochs is not None:
        raise InputError("both steps and epochs are given, expected one of them")
    positive = {"steps": steps, "epochs": epochs, "patience": patience}
    for name, value in (positive | {"evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}).items():
        if value is not None and value <= 0:
            raise InputError(f"{name} is {value}, expected more than 0")
    rates = dict(lr) if isinstance(lr, Mapping) else {"*": lr}
    if accumulate < 1 or (clip is not None and clip <= 0) or not rates or min(rates.values()) < 0:
        raise InputError(f"accumulate {accumulate}, clip {clip}, lr {lr}: expected >= 1, > 0 and >= 0")
    if tensorboard and out is None:
        raise InputError("tensorboard files need a folder: pass out=")
    fabric = fabric or _one_device()
    torch.manual_seed(seed + fabric.global_rank)
    share = accumulate, fabric.global_rank, fabric.world_size
    stream = as_stream(train, batch_size, seed, *share)
    per_epoch = len(stream) // accumulate
    if per_epoch == 0:
        raise InputError(f"an epoch has {len(stream)} batches, expected at least {accumulate}, as many as make a step")
    total = steps or max(1, round((epochs or 10) * per_epoch))
    settings = {
        "steps": total,
        "batch_size": batch_size,
        "balance": balance if isinstance(balance, str) else type(balance).__name__,
        "lr": dict(lr) if isinstance(lr, Mapping) else lr,
        "weight_decay": weight_decay,
        "schedule": schedule if isinstance(schedule, str) else "custom",
        "accumulate": accumulate,
        "clip": clip,
        "monitor": monitor,
        "patience": patience,
        "evaluate_every": evaluate_every,
        "seed": seed,
    }
    run = Run(
        model=model,
        fabric=fabric,
        balancer=_balancer(balance, model),
        total=total,
        accumulate=accumulate,
        clip=clip,
        judge=Judge(model, validation, monitor, baseline),
        conflicts=conflicts,
        optimizer=optimizer or partial(torch.optim.AdamW, lr=next(reversed(rates.values())), weight_decay=weight_decay),
        rates=rates if isinstance(lr, Mapping) else {},
        schedule=schedule,
        folder=Path(out) if out is not None else None,
        settings=settings,
    )
    run.resume()
    with ExitStack() as stack:
        if isinstance(run.balancer, BilevelWeighting):
            data = run.balancer.held_out
            run.held_out = further(stream) if data is None else HeldOut(as_stream(data, batch_size, seed, *share))
            run.balancer.watch(run.held_out_losses)
            stack.callback(run.balancer.watch, None)
        heard = list(listeners)
        if fabric.is_global_zero:
            heard += [HistoryFile(run.folder, run.history)] if run.folder else []
            heard += [TensorBoard(run.folder, run.step)] if run.folder and tensorboard else []
            heard += [Display(total, run.step)] if progress else []
        for listener in heard:
            stack.callback(listener.close)
        every = evaluate_every or max(1, math.ceil(total / 20))
        run.train(stream, per_epoch, every, checkpoint_every or every, patience, heard)
    return run.finish()


@cache
def _one_device() -> Any:
    """One Fabric for all runs that ask for none: it keeps nothing of a run, and to make one takes as long as many steps."""
    return default_fabric()


def _balancer(balance: str | torch.nn.Module, model: Any) -> Balancer:
    named = balancers[balance]() if isinstance(balance, str) else balance
    balancer = named if isinstance(named, Balancer) else TorchJD(named)
    tasks = getattr(model, "tasks", None)
    names = tuple(tasks) if tasks is not None else ()
    balancer.prepare(names)
    return balancer
