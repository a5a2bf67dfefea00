"""One trial of a comparison: a model trained and measured, as plain values that are kept in a file."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from polytask.balance import Balancer, Fixed, balancers
from polytask.data.examples import DataSet, Examples
from polytask.data.stream import Batches
from polytask.method import way_of_sharing
from polytask.model import Model
from polytask.training import evaluate, fit
from polytask.training.history import finite

EVALUATIONS = 10
"""Evaluations in a trial: points on its learning curve, and candidates for its best weights."""


@dataclass(frozen=True)
class Trial:
    """What is trained. Two trials with equal fields and data give equal results, so a finished one never runs again.

    Args:
        tasks: trained together, in this order.
        sharing, balance: names of the registers.
        weights: static weights by task, in place of ``balance``; as pairs, so that a trial can be a key.
        lr, steps, seed: learning rate, optimizer steps, and the seed of weights and order.
        kind: ``fit`` trains a model, ``yardstick`` gradient boosting for each task.
        cosines: also record the cosines of task gradients over training.
        baseline: validation metrics of single-task models by task, as pairs: the best weights are then best at delta_m,
            else at skill.
    """

    tasks: tuple[str, ...]
    seed: int
    lr: float = 0.0
    steps: int = 0
    sharing: str = "hard"
    balance: str = "equal"
    weights: tuple[tuple[str, float], ...] | None = None
    kind: str = "fit"
    cosines: bool = False
    baseline: tuple[tuple[str, float], ...] | None = None

    def key(self, data: str) -> str:
        """The name of the file that keeps this trial's result on the data with fingerprint ``data``."""
        text = json.dumps([asdict(self), data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def balancer(self) -> Balancer:
        return Fixed(dict(self.weights)) if self.weights is not None else balancers[self.balance]()

    def model(self, data: DataSet) -> Model:
        """A new model, its weights drawn by the trial's seed."""
        torch.manual_seed(self.seed)
        return Model(data.encoder(), [data.task(name) for name in self.tasks], way_of_sharing(self.sharing)())


def run_trial(trial: Trial, data: DataSet) -> dict[str, Any]:
    """Train and measure.

    Returns JSON values: ``test`` (metrics by task at the weights that were best on validation data), ``score`` and
    ``validation`` (what the monitor and the main metrics were there on validation data), ``curve`` (a record for each
    evaluation), ``seconds`` (in training steps), ``parameters``, ``memory_mb`` and, when asked for, ``cosines``.
    """
    if trial.kind == "yardstick":
        from polytask.comparison.yardstick import gradient_boosting_yardstick

        started = time.perf_counter()
        metrics = gradient_boosting_yardstick(data.only(trial.tasks), trial.seed)
        seconds = time.perf_counter() - started
        return {
            "test": finite(metrics),
            "score": None,
            "curve": [],
            "seconds": seconds,
            "parameters": None,
            "memory_mb": None,
        }
    data = data.only(trial.tasks)
    model = trial.model(data)
    fitted = fit(
        model,
        data.train,
        data.validation,
        steps=trial.steps,
        batch_size=data.settings.get("batch_size", 64),
        weight_decay=data.settings.get("weight_decay", 0.0),
        clip=data.settings.get("clip"),
        lr=trial.lr,
        balance=trial.balancer(),
        seed=trial.seed,
        evaluate_every=max(1, trial.steps // EVALUATIONS),
        conflicts=trial.cosines,
        baseline={name: value for name, value in trial.baseline if name in trial.tasks} if trial.baseline else None,
    )
    main = {name: data.task(name).metric for name in trial.tasks}
    return {
        "test": finite(evaluate(model, data.test)),
        "score": fitted.score,
        "validation": {name: finite(values[main[name]]) for name, values in fitted.metrics.items()},
        "curve": [
            {
                "step": record["step"],
                "seconds": record["seconds"],
                "validation": {name: finite(values[main[name]]) for name, values in record["validation"].items()},
            }
            for record in fitted.history
        ],
        "seconds": fitted.seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory_mb": training_memory(trial, data) / 2**20,
        "cosines": [
            {"step": record["step"], "cosines": finite(record["conflicts"]["cosines"])}
            for record in fitted.history
            if trial.cosines
        ],
    }


def step_seconds(trial: Trial, data: DataSet, repeats: int = 15) -> float:
    """The median time of one training step (forward, balance, backward, AdamW) on an otherwise idle machine."""
    data = data.only(trial.tasks)
    model, balancer = trial.model(data), trial.balancer()
    balancer.prepare(trial.tasks)
    optimizer = torch.optim.AdamW([*model.parameters(), *balancer.parameters()], lr=0.0)
    times = []
    for batch in _first_batches(data, repeats + 3):
        started = time.perf_counter()
        optimizer.zero_grad()
        balancer.step([partial(model.losses, batch)], list(model.shared_parameters()), Tensor.backward)
        optimizer.step()
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def training_memory(trial: Trial, data: DataSet) -> int:
    """Bytes that a training step holds at its peak: weights, gradients, AdamW's two moments, and saved activations.

    Counted from the tensors themselves rather than read from the operating system, so that it is the same on every machine
    and does not depend on what ran in the process before.
    """
    model = trial.model(data)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    for batch in _first_batches(data, 1):
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = model.losses(batch)  # the graph keeps the saved tensors alive, so no address is counted twice
        del losses
    return 4 * weights + sum(saved.values())


def fingerprint(data: DataSet) -> str:
    """A hash of everything a trial's result depends on besides the trial: the tensors, the tasks, the encoder, the code."""
    from polytask import __version__

    digest = hashlib.blake2b(digest_size=16)
    torch.manual_seed(0)
    described = [[task.to_dict() for task in data.tasks], str(data.encoder()), dict(data.settings), __version__]
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for examples in (data.train, data.validation, data.test):
        for name, array in arrays(examples).items():
            digest.update(f"{name}{array.shape}{array.dtype}".encode())
            digest.update(memoryview(array.reshape(-1)).cast("B"))
    return digest.hexdigest()


def arrays(examples: Examples) -> dict[str, Any]:
    """The tensors of ``examples`` as numpy arrays, which worker processes map into memory instead of copying."""
    inputs: Mapping[str, Tensor] = {"": examples.inputs} if isinstance(examples.inputs, Tensor) else examples.inputs
    named = {f"inputs/{name}": tensor for name, tensor in inputs.items()}
    named |= {f"targets/{name}": tensor for name, tensor in examples.targets.items()}
    return {name: tensor.contiguous().numpy() for name, tensor in named.items()}


def from_arrays(values: Mapping[str, Any]) -> Examples:
    """What `arrays` took apart."""
    tensors = {name: torch.from_numpy(array) for name, array in values.items()}
    inputs = {name.removeprefix("inputs/"): t for name, t in tensors.items() if name.startswith("inputs/")}
    targets = {name.removeprefix("targets/"): t for name, t in tensors.items() if name.startswith("targets/")}
    return Examples(inputs[""] if list(inputs) == [""] else inputs, targets)


def _first_batches(data: DataSet, count: int) -> Sequence[Any]:
    size = min(data.settings.get("batch_size", 64), len(data.train))
    stream = Batches(data.train, size)
    batches: list[Any] = []
    epoch = 0
    while len(batches) < count:
        batches += [batch for batch, _ in zip(stream.epoch(epoch), range(count - len(batches)), strict=False)]
        epoch += 1
    return batches
