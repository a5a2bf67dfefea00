"""The training loop: one step is losses -> balance -> optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from polytask.balance import Balancer, balancers, gradient_cosines
from polytask.data.examples import to_device
from polytask.data.stream import as_stream
from polytask.errors import InputError, TrainingError, suggest
from polytask.measure import delta_m, skill
from polytask.model import Losses, Model
from polytask.training import checkpoint
from polytask.training.display import Display
from polytask.training.evaluate import Metrics, evaluate, evaluate_constant, evaluate_losses
from polytask.training.hardware import fabric as default_fabric
from polytask.training.history import HistoryFile, Listener, TensorBoard

OptimizerFactory: TypeAlias = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory: TypeAlias = Callable[[Optimizer, int], LRScheduler]


@dataclass
class Fitted:
    """What `fit` returns.

    Attributes:
        model: the model given, with the weights of the best evaluation (of the last step when there was no validation data).
        metrics: its validation metrics by task; empty without validation data.
        score: what `monitor` measured for it; ``None`` without validation data.
        step: the step those weights are from.
        steps: how many optimizer steps were taken.
        seconds: time spent in training steps, without evaluations.
        history: a record for each evaluation: ``step``, ``epoch``, ``seconds``, ``lr``, ``loss`` (mean training loss by task
            since the last record), ``validation`` (metrics by task), ``score``, and ``conflicts`` when asked for:
            ``tasks``, ``cosines`` (a row for each task), ``share`` (of pairs that conflict).
    """

    model: Any
    metrics: Metrics
    score: float | None
    step: int
    steps: int
    seconds: float
    history: list[dict[str, Any]] = field(repr=False)


def fit(
    model: Losses,
    train: Any,
    validation: Any = None,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 64,
    balance: str | Balancer = "equal",
    optimizer: OptimizerFactory | None = None,
    lr: float = 1e-3,
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
        validation: the same kinds of data, read in order; for selecting weights and stopping early.
        steps, epochs: how long: optimizer steps, or passes over ``train``. 10 epochs when neither is given.
        batch_size: examples in a step, over all processes and accumulated batches (for `Examples`; a loader has its own).
        balance: a balancer, or its name.
        optimizer: called with parameter groups; AdamW with ``lr`` and ``weight_decay`` by default.
        lr, weight_decay: of the default optimizer.
        schedule: ``"cosine"`` (to 0 at the last step), ``"constant"``, or a function of optimizer and steps.
        accumulate: batches whose gradients make one step.
        clip: the largest norm of the gradient; ``None`` does not clip.
        monitor: what the best weights are best at. ``"skill"``: mean over tasks of `polytask.measure.skill` (default);
            ``"delta_m"``: `polytask.measure.delta_m` over ``baseline`` (default when that is given); a task's name: its main
            metric; ``"TASK/METRIC"``: one metric; ``"loss"``: the sum of validation losses (default for modules that only
            have ``losses``).
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
    for name, value in {"steps": steps, "epochs": epochs, "patience": patience, "evaluate_every": evaluate_every}.items():
        if value is not None and value <= 0:
            raise InputError(f"{name} is {value}, expected more than 0")
    if accumulate < 1 or (clip is not None and clip <= 0) or lr < 0:
        raise InputError(f"accumulate {accumulate}, clip {clip}, lr {lr}: expected >= 1, > 0 and >= 0")
    if tensorboard and out is None:
        raise InputError("tensorboard files need a folder: pass out=")
    fabric = fabric or default_fabric()
    torch.manual_seed(seed + fabric.global_rank)
    stream = as_stream(train, batch_size, seed, accumulate, fabric.global_rank, fabric.world_size)
    per_epoch = len(stream) // accumulate
    if per_epoch == 0:
        raise InputError(f"an epoch has {len(stream)} batches, expected at least {accumulate}, as many as make a step")
    total = steps or max(1, round((epochs or 10) * per_epoch))
    settings = {
        "steps": total,
        "batch_size": batch_size,
        "balance": balance if isinstance(balance, str) else type(balance).__name__,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": schedule if isinstance(schedule, str) else "custom",
        "accumulate": accumulate,
        "clip": clip,
        "monitor": monitor,
        "patience": patience,
        "evaluate_every": evaluate_every,
        "seed": seed,
    }
    run = _Run(
        model=model,
        fabric=fabric,
        balancer=_balancer(balance, model),
        total=total,
        accumulate=accumulate,
        clip=clip,
        judge=_Judge(model, validation, monitor, baseline),
        conflicts=conflicts,
        optimizer=optimizer or partial(torch.optim.AdamW, lr=lr, weight_decay=weight_decay),
        schedule=schedule,
        folder=Path(out) if out is not None else None,
        settings=settings,
    )
    run.resume()
    with ExitStack() as stack:
        heard = list(listeners)
        if fabric.is_global_zero:
            heard += [HistoryFile(run.folder, run.history)] if run.folder else []
            heard += [TensorBoard(run.folder)] if run.folder and tensorboard else []
            heard += [Display(total, run.step)] if progress else []
        for listener in heard:
            stack.callback(listener.close)
        every = evaluate_every or max(1, math.ceil(total / 20))
        run.train(stream, per_epoch, every, checkpoint_every or every, patience, heard)
    return run.finish()


@dataclass
class _Run:
    """A run in progress: its state, and what is done to it."""

    model: Any
    fabric: Any
    balancer: Balancer
    total: int
    accumulate: int
    clip: float | None
    judge: _Judge
    conflicts: bool
    optimizer: Any
    schedule: Any
    folder: Path | None
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        fabric, weights = self.fabric, list(self.model.parameters())
        self.balancer.to(fabric.device)
        learned = list(self.balancer.parameters())
        groups: list[dict[str, Any]] = [{"params": weights}]
        groups += [{"params": learned, "weight_decay": 0.0}] if learned else []
        optimizer = self.optimizer(groups)
        self.module, self.optimizer = fabric.setup(self.model, optimizer)
        for method in ("losses", "predict"):
            if hasattr(self.model, method):
                self.module.mark_forward_method(method)
        self.scheduler = _scheduler(self.schedule, optimizer, self.total)
        # One process in full precision needs nothing from the wrappers, and small networks feel their cost.
        self.plain = fabric.world_size == 1 and self.settings_precision() == "32-true"
        self.losses = self.model.losses if self.plain else self.module.losses
        self.update = optimizer.step if self.plain else self.optimizer.step
        self.backward = torch.Tensor.backward if self.plain else fabric.backward
        self.shared = list(self.model.shared_parameters())
        self.learned = learned
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.finished = False

    def settings_precision(self) -> str:
        return str(self.fabric.strategy.precision.precision)

    def train(
        self, stream: Any, per_epoch: int, every: int, save_every: int, patience: int | None, listeners: Sequence[Listener]
    ) -> None:
        self.module.train()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        saved = self.step
        started = time.perf_counter()
        while self.step < self.total and not self.finished:
            epoch, done = divmod(self.step, per_epoch)
            batches = stream.epoch(epoch, done * self.accumulate)
            for step_batches in _grouped(batches, self.accumulate):
                values = self._step(step_batches)
                self.step += 1
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
                    counts[name] = counts.get(name, 0) + 1
                for listener in listeners:
                    listener.step(self.step, values)
                if self.step % every == 0 or self.step == self.total:
                    self.seconds += time.perf_counter() - started
                    loss = {name: sums[name] / counts[name] for name in sums}
                    sums, counts = {}, {}
                    record = self._record(step_batches[-1], loss, self.step / per_epoch)
                    for listener in listeners:
                        listener.record(record)
                    self.finished = self.step == self.total or self._patience_is_over(patience)
                    if self.finished or self.step - saved >= save_every:
                        self.save()
                        saved = self.step
                    started = time.perf_counter()
                if self.finished or self.step == self.total:
                    break

    def _step(self, batches: Sequence[Any]) -> dict[str, float]:
        """One optimizer step on the accumulated ``batches``; the losses by task."""
        self.optimizer.zero_grad()
        batches = [to_device(batch, self.fabric.device) for batch in batches]
        shares = None if len(batches) == 1 and self.fabric.world_size == 1 else self._shares(batches)
        values: dict[str, float] = {}
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with self.fabric.no_backward_sync(self.module, enabled=not last and self.fabric.world_size > 1):
                losses = self.losses(batch)
                if shares is not None:
                    losses = _weighed(losses, shares[i], self.fabric.device)
                self._check(losses, values, len(batches))
                if losses:
                    self.balancer.backward(losses, self.shared, self._scaled_backward(len(batches)))
        if self.fabric.world_size > 1:
            for parameter in self.learned:
                if parameter.grad is not None:
                    parameter.grad = self.fabric.all_reduce(parameter.grad, reduce_op="mean")
        if self.clip is not None:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.clip, error_if_nonfinite=False)
        self.update()
        self.scheduler.step()
        return values

    def _scaled_backward(self, batches: int) -> Callable[[Tensor], None]:
        return self.backward if batches == 1 else lambda loss: self.backward(loss / batches)

    def _shares(self, batches: Sequence[Any]) -> list[dict[str, Tensor]]:
        """For each batch and task the factor that turns its mean loss into its share of the mean over the whole step.

        With ``c`` labels here of ``C`` in the step, ``W`` processes (whose gradients are averaged) and ``A`` batches (whose
        losses are divided by ``A``), the factor is ``W A c / C``.
        """
        names = sorted(self.model.tasks) if isinstance(self.model, Model) else []
        if not hasattr(self.model, "label_counts"):
            return [{} for _ in batches]
        each = [self.model.label_counts(batch) for batch in batches]
        names = names or sorted({name for counts in each for name in counts})
        zero = torch.zeros((), device=self.fabric.device)
        table = torch.stack([torch.stack([counts.get(name, zero).float() for name in names]) for counts in each])
        whole = self.fabric.all_reduce(table.sum(0), reduce_op="sum")
        factors = table / whole.clamp(min=1e-12) * len(batches) * self.fabric.world_size
        present = (whole > 0).tolist()
        return [{name: row[k] for k, name in enumerate(names) if present[k]} for row in factors]

    def _check(self, losses: Mapping[str, Tensor], values: dict[str, float], batches: int) -> None:
        for name, loss in losses.items():
            value = loss.item()
            if not math.isfinite(value):
                self._stop_at(name, value)
            values[name] = values.get(name, 0.0) + value / batches

    def _stop_at(self, task: str, value: float) -> None:
        where = ""
        if self.folder is not None:
            if all(bool(p.isfinite().all()) for p in self.model.parameters()):
                self.save()
            where = f"; the last good state is in {self.folder / checkpoint.FILE}"
        raise TrainingError(f"the loss of task {task!r} is {value} at step {self.step + 1}{where}")

    def _record(self, batch: Any, loss: dict[str, float], epoch: float) -> dict[str, Any]:
        record = {
            "step": self.step,
            "epoch": epoch,
            "seconds": self.seconds,
            "lr": self.scheduler.get_last_lr()[0],
            "loss": loss,
            **self.judge(self.module if self.fabric.world_size > 1 else self.model),
        }
        if self.conflicts:
            record["conflicts"] = self._conflicts(batch)
        self.history.append(record)
        score = record["score"]
        if score is not None and (self.best is None or score > self.best["score"]):
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.best = {"score": score, "step": self.step, "weights": weights, "validation": record["validation"]}
        return record

    def _conflicts(self, batch: Any) -> dict[str, Any]:
        losses = self.losses(to_device(batch, self.fabric.device))
        cosines = gradient_cosines(losses, self.shared)
        pairs = [cosines[i, j].item() for i, j in combinations(range(len(losses)), 2)]
        share = sum(pair < 0 for pair in pairs) / len(pairs) if pairs else 0.0
        return {"tasks": list(losses), "cosines": cosines.tolist(), "share": share}

    def _patience_is_over(self, patience: int | None) -> bool:
        if patience is None or self.best is None:
            return False
        later = [record for record in self.history if record["step"] > self.best["step"]]
        return len(later) >= patience

    def save(self) -> None:
        """Write a checkpoint, when the run has a folder."""
        if self.folder is None:
            return
        random_states = [self.fabric.all_gather(state) for state in checkpoint.random_state(self.fabric.device)]
        if self.fabric.is_global_zero:
            state = {
                "settings": self.settings,
                "step": self.step,
                "seconds": self.seconds,
                "finished": self.finished,
                "history": self.history,
                "best": self.best,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "balancer": self.balancer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "random": random_states,
            }
            checkpoint.save(self.folder, state)
        self.fabric.barrier()

    def resume(self) -> None:
        """Go on from the checkpoint in the run's folder, if there is one."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror})") from error
        state = checkpoint.load(self.folder, self.settings)
        if state is None:
            return
        for name in ("step", "seconds", "finished", "history", "best"):
            setattr(self, name, state[name])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.balancer.load_state_dict(state["balancer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        own = [s if self.fabric.world_size == 1 else s[self.fabric.global_rank] for s in state["random"]]
        checkpoint.set_random_state(own, self.fabric.device)

    def finish(self) -> Fitted:
        if self.best is not None:
            self.model.load_state_dict(self.best["weights"])
        best = self.best or {"score": None, "step": self.step, "validation": {}}
        return Fitted(
            model=self.model,
            metrics=best["validation"],
            score=best["score"],
            step=best["step"],
            steps=self.step,
            seconds=self.seconds,
            history=self.history,
        )


class _Judge:
    """Scores a model on the validation data; higher is better whatever it monitors."""

    def __init__(self, model: Any, data: Any, monitor: str | None, baseline: Mapping[str, float] | None) -> None:
        self.data = data
        self.baseline = baseline
        self.tasks = model.tasks if isinstance(model, Model) else {}
        default = "loss" if not self.tasks else "delta_m" if baseline else "skill"
        self.monitor = monitor or default
        self.reference: Metrics | None = None
        if data is None and (monitor or baseline):
            raise InputError(f"monitor {self.monitor!r} needs validation data, and none is given")
        task, _, metric = self.monitor.partition("/")
        if self.monitor not in ("skill", "delta_m", "loss"):
            if task not in self.tasks:
                known = ["skill", "delta_m", "loss", *self.tasks]
                raise InputError(f"unknown monitor {self.monitor!r}: {suggest(task, known)}")
            if metric and metric not in self.tasks[task].metrics():
                known = list(self.tasks[task].metrics())
                raise InputError(f"unknown metric {metric!r} of task {task!r}: {suggest(metric, known)}")
        if self.monitor == "delta_m":
            missing = [name for name in self.tasks if name not in (baseline or {})]
            if missing:
                raise InputError(f"monitor 'delta_m' needs a baseline for every task, and {missing[0]!r} has none")

    def __call__(self, model: Any) -> dict[str, Any]:
        if self.data is None:
            return {"validation": {}, "score": None}
        if self.monitor == "loss":
            losses = evaluate_losses(model, self.data)
            return {"validation": {name: {"loss": loss} for name, loss in losses.items()}, "score": -sum(losses.values())}
        metrics = evaluate(model, self.data)
        return {"validation": metrics, "score": self._score(metrics)}

    def _score(self, metrics: Metrics) -> float:
        main = {name: metrics[name][self.tasks[name].metric] for name in metrics}
        if self.monitor == "delta_m":
            assert self.baseline is not None
            return delta_m(main, self.baseline, {name: self.tasks[name].higher_is_better for name in main})
        if self.monitor == "skill":
            if self.reference is None:
                self.reference = evaluate_constant(self.tasks, self.data)
            scores = []
            for name, value in main.items():
                task = self.tasks[name]
                zero = self.reference[name][task.metric]
                # A score that is undefined for a constant prediction (as a correlation is) counts from 0.
                zero = zero if math.isfinite(zero) else 0.0
                scores.append(skill(value, zero, task.metrics()[task.metric].perfect))
            return sum(scores) / len(scores)
        name, _, metric = self.monitor.partition("/")
        task = self.tasks[name]
        metric = metric or task.metric
        sign = 1 if task.metrics()[metric].higher_is_better else -1
        return sign * metrics[name][metric]


def _balancer(balance: str | Balancer, model: Any) -> Balancer:
    balancer = balancers[balance]() if isinstance(balance, str) else balance
    tasks = getattr(model, "tasks", None)
    names = tuple(tasks) if tasks is not None else ()
    balancer.prepare(names)
    return balancer


def _scheduler(schedule: str | ScheduleFactory, optimizer: Optimizer, total: int) -> LRScheduler:
    if not isinstance(schedule, str):
        return schedule(optimizer, total)
    shapes: dict[str, Callable[[int], float]] = {
        "cosine": lambda step: (1 + math.cos(math.pi * min(step, total) / total)) / 2,
        "constant": lambda step: 1.0,
    }
    if schedule not in shapes:
        raise InputError(f"unknown schedule {schedule!r}: {suggest(schedule, shapes)}")
    return LambdaLR(optimizer, shapes[schedule])


def _weighed(losses: dict[str, Tensor], factors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Losses times their factors, in their order; a task that only other processes have labels for is there as a zero."""
    if not factors:
        return losses
    zero = torch.zeros((), device=device)
    return {name: losses[name] * factor if name in losses else zero for name, factor in factors.items()}


def _grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` consecutive batches; an incomplete last one is left out."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
