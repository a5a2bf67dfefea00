"""A run in progress: one step is losses -> balance -> optimizer; its state can be saved, and gone on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from polytask.balance import Balancer, LossWeighting, gradient_cosines
from polytask.data.examples import to_device
from polytask.data.mixture import Mixture
from polytask.errors import InputError, TrainingError, suggest
from polytask.model import Model
from polytask.training import checkpoint
from polytask.training.evaluate import Metrics
from polytask.training.held_out import HeldOut
from polytask.training.history import Listener
from polytask.training.judge import Judge

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


@dataclass
class Run:
    """A run in progress: its state, and what is done to it."""

    model: Any
    fabric: Any
    balancer: Balancer
    total: int
    accumulate: int
    clip: float | None
    judge: Judge
    conflicts: bool
    optimizer: Any
    rates: Mapping[str, float]
    schedule: Any
    folder: Path | None
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        fabric = self.fabric
        # Before the optimizer is made: sharding puts other parameters in the place of these.
        self.module = fabric.setup_module(self.model)
        self.balancer.to(fabric.device)
        learned = list(self.balancer.parameters())
        groups = _groups(self.model, self.rates)
        groups += [{"params": learned, "weight_decay": 0.0}] if learned else []
        optimizer = self.optimizer(groups)
        self.optimizer = fabric.setup_optimizers(optimizer)
        self.scheduler = _scheduler(self.schedule, optimizer, self.total)
        # One process in full precision needs nothing from the wrappers, and small networks feel their cost.
        self.plain = fabric.world_size == 1 and str(fabric.strategy.precision.precision) == "32-true"
        self.losses = self.model.losses if self.plain else partial(self._through_fabric, "losses")
        self.update = optimizer.step if self.plain else self.optimizer.step
        self.owned = [p for group in optimizer.param_groups for p in group["params"]]
        self.backward = torch.Tensor.backward if self.plain else fabric.backward
        self.shared = [parameter for parameter in self.model.shared_parameters() if parameter.requires_grad]
        self.learned = learned
        self.names = tuple(getattr(self.model, "tasks", ()))
        if fabric.world_size > 1 and hasattr(self.model, "label_counts") and not self.names:
            raise InputError(
                "several processes need to agree on tasks: give the model an attribute 'tasks' with their names"
            )
        self.pieces = any(hasattr(p, "device_mesh") for p in self.model.parameters())
        scales = getattr(fabric.strategy.precision, "scaler", None) is not None
        if scales and (self.conflicts or not isinstance(self.balancer, LossWeighting)):
            raise InputError(
                "16-mixed scales losses before their gradients are taken, so that gradients cannot be compared: "
                "use bf16-mixed, or a loss weighting and no conflicts"
            )
        if type(fabric.strategy).__name__ == "FSDPStrategy":
            raise InputError("the first version of FSDP: use polytask.training.fabric(strategy='fsdp'), the second")
        if self.pieces and (self.conflicts or not self.balancer.pieces):
            raise InputError(
                "parameters in pieces have no gradients to compare: use a loss weighting, or inner products of the "
                "representation (polytask.balance.Estimated), and no conflicts"
            )
        self.held_out: HeldOut | None = None
        self.looked = 0  # at how many held-out batches in this step
        self.step = 0
        self.seconds = 0.0
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.finished = False

    def _through_fabric(self, method: str, *args: Any) -> Any:
        """Run a method of the model as Fabric runs ``forward``: in its precision, and through its DDP or FSDP wrapper.

        Fabric's own way for this, ``mark_forward_method``, forgets the precision on a single device, and converts targets
        as it does inputs, although a target such as 20,011 has no value near it in half precision. And of what its own
        ``forward`` returns in mixed precision no gradients can be taken but by ``fabric.backward``.
        """
        precision = self.fabric.strategy.precision
        convert = precision.convert_input
        model, first = self.model, args[0]
        if method == "predict" or not isinstance(model, Model):
            first = convert(first)
        elif isinstance(first, Mapping):
            first = {name: (convert(inputs), target) for name, (inputs, target) in first.items()}
        else:
            first = (convert(first[0]), first[1])

        def forward(boxed: _Boxed) -> Any:
            restore()  # the method may call the model's own forward
            return getattr(model, method)(*boxed.args)

        own = model.__dict__.get("forward")
        restore = partial(_set_forward, model, own)
        _set_forward(model, forward)
        try:
            with precision.forward_context():
                found = self.module._forward_module(_Boxed(first, *args[1:]))
            return precision.convert_output(found)
        finally:
            restore()

    def train(
        self, stream: Any, per_epoch: int, every: int, save_every: int, patience: int | None, listeners: Sequence[Listener]
    ) -> None:
        self.module.train()
        sums, counts = self.sums, self.counts
        if isinstance(stream, Mixture):
            _check_metrics(stream.sampling.metrics(), self.judge)
        started = time.perf_counter()
        while self.step < self.total and not self.finished:
            epoch, done = divmod(self.step, per_epoch)
            if hasattr(stream, "hear"):
                stream.hear(self.history)
            batches = stream.epoch(epoch, done * self.accumulate)
            for step_batches in _grouped(batches, self.accumulate):
                values = self._step(step_batches)
                self.step += 1
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
                    counts[name] = counts.get(name, 0) + 1
                for listener in listeners:
                    listener.step(self.step, values)
                last = self.step == self.total
                judged = last or self.step % every == 0
                if judged or self.step % save_every == 0:
                    self.seconds += time.perf_counter() - started
                    if judged:
                        record = self._record(step_batches[-1], self.step / per_epoch)
                        for listener in listeners:
                            listener.record(record)
                        self.finished = last or self._patience_is_over(patience)
                    if self.finished or self.step % save_every == 0:
                        self.save()
                    started = time.perf_counter()
                if self.finished or self.step % per_epoch == 0:
                    break
            else:
                raise InputError(
                    f"epoch {epoch} of the training data ended at step {self.step}, expected {per_epoch} steps in an epoch: "
                    f"the data says that it has {len(stream)} batches, and has fewer"
                )

    def _step(self, batches: Sequence[Any]) -> dict[str, float]:
        """One optimizer step on the accumulated ``batches``; the losses by task."""
        batches = [to_device(batch, self.fabric.device) for batch in batches]
        values: dict[str, float] = {}
        self._balance(batches, values)
        if self.clip is not None:
            self._clip(self.clip)
        self.update()
        self.scheduler.step()
        return values

    def _forget(self) -> None:
        """Let go of the last step's gradients, as ``optimizer.zero_grad()`` does, without its bookkeeping.

        Just before new ones are made, which then take their place in memory.
        """
        for parameter in self.owned:
            parameter.grad = None

    def _balance(self, batches: Sequence[Any], values: dict[str, float]) -> None:
        """Leave the step's gradients, of the mean over its batches and over processes, and add its losses to ``values``."""
        count, several = len(batches), self.fabric.world_size > 1
        self.looked = 0
        shares = self._shares(batches) if several or count > 1 else None
        heard: set[int] = set()

        def evaluate(i: int) -> dict[str, Tensor]:
            losses = self.losses(batches[i])
            there = set(losses)
            if several and not there:
                raise InputError(f"process {self.fabric.global_rank} has a batch of no task, expected at least one")
            losses = losses if shares is None else _weighed(losses, shares[i])
            if i not in heard:  # a balancer may look again, from other weights
                heard.add(i)
                self._note(losses, values, count)
                if len(heard) == 1:
                    self._forget()
            if not there or isinstance(self.balancer, LossWeighting):
                return losses if there else {}
            return {name: loss for name, loss in losses.items() if name in there}  # the others compare gradients

        def backward(loss: Tensor) -> None:
            self.backward(loss / count if count > 1 else loss)

        evaluations = [partial(evaluate, i) for i in range(count)]
        group = torch.distributed.group.WORLD if several else None
        if isinstance(self.balancer, LossWeighting) or self.pieces:
            for i in range(count):
                with self.fabric.no_backward_sync(self.module, enabled=several and i < count - 1):
                    self.balancer.step(evaluations[i : i + 1], self.shared, backward, group)
            by_hand = self.learned
        else:
            # What compares gradients writes them where DDP does not see it: then they are averaged here, not by DDP.
            with self.fabric.no_backward_sync(self.module, enabled=several):
                self.balancer.step(evaluations, self.shared, backward, group)
            joined = set(map(id, self.shared)) if self.balancer.joins else set()
            by_hand = [p for p in (*self.model.parameters(), *self.learned) if id(p) not in joined]
        if several:
            self._average(by_hand)

    def held_out_losses(self) -> dict[str, Tensor]:
        """The losses of the next held-out batch of this step; nothing is noted of them."""
        assert self.held_out is not None
        number = self.step * self.accumulate + self.looked
        self.looked += 1
        losses: dict[str, Tensor] = self.losses(to_device(self.held_out.batch(number), self.fabric.device))
        return losses

    def _clip(self, largest: float) -> None:
        if not self.pieces:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=largest, error_if_nonfinite=False)
            return
        # torch has no norm of gradients of which some are in pieces and some, those of learned weights, are whole.
        self.fabric.strategy.precision.unscale_gradients(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        own = [p.grad for p in self.learned if p.grad is not None]
        squares = self._sum(torch.stack([_piece(gradient).square().sum() for gradient in gradients]).sum())
        norm = torch.stack([squares, *(gradient.square().sum() for gradient in own)]).sum().sqrt()
        for gradient in (*map(_piece, gradients), *own):
            gradient.mul_((largest / (norm + 1e-6)).clamp(max=1))

    def _average(self, parameters: Sequence[Tensor]) -> None:
        """Replace the gradients of ``parameters`` by their mean over all processes; none counts as zero."""
        if not parameters:
            return
        there = torch.tensor([float(p.grad is not None) for p in parameters], device=self.fabric.device)
        somewhere = (self._sum(there) > 0).tolist()
        parameters = [p for p, known in zip(parameters, somewhere, strict=True) if known]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters])
        flat = self._sum(flat) / self.fabric.world_size
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = mean.view_as(parameter).to(parameter.dtype)

    def _shares(self, batches: Sequence[Any]) -> list[dict[str, Tensor]] | None:
        """For each batch and task the factor that turns its mean loss into its share of the mean over the whole step.

        With ``c`` labels here of ``C`` in the step, ``W`` processes (whose gradients are averaged) and ``A`` batches (whose
        losses are divided by ``A``), the factor is ``W A c / C``. Every process has the same tasks in the same order.
        """
        if not hasattr(self.model, "label_counts"):
            return None
        each = [self.model.label_counts(batch) for batch in batches]
        names = self.names or tuple(dict.fromkeys(name for counts in each for name in counts))
        zero = torch.zeros((), device=self.fabric.device)
        table = torch.stack([torch.stack([counts.get(name, zero).float() for name in names]) for counts in each])
        there = zero.new_tensor([[name in counts for name in names] for counts in each])
        whole, somewhere = self._sum(torch.stack([table.sum(0), there.sum(0)]))
        if self.pieces and bool(((somewhere > 0) & (somewhere < len(batches) * self.fabric.world_size)).any()):
            raise InputError("with parameters in pieces every process needs every task in each batch; labels may be missing")
        factors = table / torch.where(whole > 0, whole, 1) * len(batches) * self.fabric.world_size
        present = (somewhere > 0).tolist()
        return [{name: row[k] for k, name in enumerate(names) if present[k]} for row in factors]

    def _note(self, losses: Mapping[str, Tensor], values: dict[str, float], batches: int) -> None:
        """Add the losses to ``values``, as numbers; stop the run, in every process, when one is not finite."""
        if self.fabric.world_size == 1:
            numbers = [loss.item() for loss in losses.values()]
        else:
            numbers = self._numbers_everywhere(losses)
        for name, value in zip(losses, numbers, strict=True):
            if not math.isfinite(value):
                self._stop_at(f"the loss of task {name!r} is {value}")
            values[name] = values.get(name, 0.0) + value / batches

    def _numbers_everywhere(self, losses: Mapping[str, Tensor]) -> list[float]:
        stacked = torch.stack([loss.detach().float() for loss in losses.values()])
        if hasattr(self.model, "label_counts"):
            # Every process has these tasks in this order, each loss weighed so that the mean is that of the joined batch.
            return list((self._sum(stacked) / self.fabric.world_size).tolist())
        numbers: list[float] = stacked.tolist()
        fine = all(math.isfinite(number) for number in numbers)
        if not self._everywhere(fine) and fine:
            self._stop_at("a loss in another process is not finite")
        return numbers

    def _sum(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all processes, without the barrier that Fabric puts before it."""
        if self.fabric.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def _everywhere(self, fine: bool) -> bool:
        """Whether ``fine`` holds in every process."""
        if self.fabric.world_size == 1:
            return fine
        wrong = torch.tensor(float(not fine), device=self.fabric.device)
        return float(self._sum(wrong)) == 0.0

    def _stop_at(self, what: str) -> None:
        where = ""
        if self.folder is not None:
            # The batch that fails may have reached the running statistics of a layer; the state before is on disk then.
            sound = all(bool(_piece(p).isfinite().all()) for p in self.model.parameters())
            if self._everywhere(sound and not any(bool(_piece(b).isnan().any()) for b in self.model.buffers())):
                self.save()
            path = self.folder / checkpoint.FILE
            where = f"; the last good state is in {path}" if path.exists() else "; no good state was reached"
        raise TrainingError(f"{what} at step {self.step + 1}{where}")

    def _record(self, batch: Any, epoch: float) -> dict[str, Any]:
        loss = {name: self.sums[name] / self.counts[name] for name in self.sums}
        self.sums.clear()
        self.counts.clear()
        # The first process decides for all, so that no rounding can part them.
        with checkpoint.same_random_state(self.fabric.device):
            judged = self.fabric.broadcast(self.judge(self.model, self.losses, self.predict))
        record = {
            "step": self.step,
            "epoch": epoch,
            "seconds": self.seconds,
            "lr": self.scheduler.get_last_lr()[0],
            "loss": loss,
            **judged,
        }
        if self.conflicts:
            record["conflicts"] = self.fabric.broadcast(self._conflicts(batch))
        self.history.append(record)
        score = record["score"]
        if score is not None and not math.isnan(score) and (self.best is None or score > self.best["score"]):
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.best = {"score": score, "step": self.step, "weights": weights, "validation": record["validation"]}
        return record

    def predict(self, *args: Any) -> Any:
        return self.model.predict(*args) if self.plain else self._through_fabric("predict", *args)

    def _conflicts(self, batch: Any) -> dict[str, Any]:
        # Looking must not change the run: random layers draw, and normalisation layers count, as if nobody had looked.
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        unsynchronised = self.fabric.no_backward_sync(self.module, enabled=self.fabric.world_size > 1)
        with checkpoint.same_random_state(self.fabric.device), unsynchronised:
            losses = self.losses(to_device(batch, self.fabric.device))
            cosines = gradient_cosines(losses, self.shared)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        pairs = [cosines[i, j].item() for i, j in combinations(range(len(losses)), 2)]
        share = sum(pair < 0 for pair in pairs) / len(pairs) if pairs else 0.0
        return {"tasks": list(losses), "cosines": cosines.tolist(), "share": share}

    def _patience_is_over(self, patience: int | None) -> bool:
        if patience is None:
            return False
        if self.best is None:  # not one score was a number
            return self.judge.data is not None and len(self.history) >= patience
        best = int(self.best["step"])
        return len([record for record in self.history if record["step"] > best]) >= patience

    def save(self) -> None:
        """Write a checkpoint, when the run has a folder. Every process takes part, and the first writes."""
        if self.folder is None:
            return
        state = {
            "settings": self.settings,
            "step": self.step,
            "seconds": self.seconds,
            "finished": self.finished,
            "sums": self.sums,
            "counts": self.counts,
            "history": self.history,
            "best": checkpoint.whole(self.best),
            "model": checkpoint.whole(self.model.state_dict()),
            "optimizer": checkpoint.whole(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            "balancer": self.balancer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "random": [self.fabric.all_gather(state) for state in checkpoint.random_state(self.fabric.device)],
        }
        if self.fabric.is_global_zero:
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
        for name in ("step", "seconds", "finished", "sums", "counts", "history", "best"):
            setattr(self, name, state[name])
        own = self.model.state_dict()
        self.model.load_state_dict({name: checkpoint.in_pieces(v, own[name]) for name, v in state["model"].items()})
        if self.best is not None:
            weights = self.best["weights"]
            self.best["weights"] = {name: checkpoint.in_pieces(value, own[name]) for name, value in weights.items()}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, moments in state["optimizer"]["state"].items():
            moments |= {k: checkpoint.in_pieces(v, parameters[index]) for k, v in moments.items() if isinstance(v, Tensor)}
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.balancer.load_state_dict(state["balancer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        random = [s if self.fabric.world_size == 1 else s[self.fabric.global_rank] for s in state["random"]]
        checkpoint.set_random_state(random, self.fabric.device)

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


class _Boxed:
    """Arguments on their way through Fabric, which converts the tensors that it sees."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def _set_forward(model: Any, forward: Callable[..., Any] | None) -> None:
    """Put ``forward`` on the module itself, before its class's; ``None`` takes away what was put there."""
    model.__dict__.pop("forward", None)
    if forward is not None:
        model.__dict__["forward"] = forward


def _check_metrics(wanted: Mapping[str, str], judge: Judge) -> None:
    """Raise `InputError` unless the judge's records will have these metrics, by task."""
    for name, metric in wanted.items():
        if judge.data is None:
            raise InputError(f"the curriculum goes by the validation {metric!r} of task {name!r}: give validation data")
        if judge.own and judge.monitor != "loss":  # only its records tell what the module's own evaluate finds
            continue
        if judge.monitor == "loss":
            known = ["loss"]
        else:
            known = list(judge.tasks[name].metrics()) if name in judge.judged else []
        if metric not in known:
            what = suggest(metric, known) if known else "the validation data has no label for it"
            raise InputError(f"the curriculum goes by the validation {metric!r} of task {name!r}: {what}")


def _groups(model: torch.nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: one for each pattern of names, or a single one where no rates are given."""
    if not rates:
        return [{"params": list(model.parameters())}]
    groups: dict[str, list[torch.nn.Parameter]] = {pattern: [] for pattern in rates}
    for name, parameter in model.named_parameters():
        fitting = next((pattern for pattern in rates if fnmatchcase(name, pattern)), None)
        if fitting is None:
            raise InputError(f"lr: no pattern of {list(rates)} fits the parameter {name!r}: add one for the others, '*'")
        groups[fitting].append(parameter)
    return [{"params": found, "lr": rates[pattern]} for pattern, found in groups.items() if found]


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


def _weighed(losses: dict[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Losses times their factors, in the order of the factors.

    A task that only other batches of the step have labels for is there as a zero: a weighting that adds a term for each task
    then adds the same terms in every batch.
    """
    return {name: losses[name] * factor if name in losses else torch.zeros_like(factor) for name, factor in factors.items()}


def _piece(tensor: Tensor) -> Tensor:
    """This process's piece of a tensor, which is all of it unless it is in pieces."""
    piece: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return piece


def _grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` consecutive batches; an incomplete last one is left out."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
