"""A base, its fine-tuned encoders and their frozen heads: made, kept, and measured."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import safetensors.torch as safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from polytask.data.examples import Examples, Inputs
from polytask.files import cache_folder, replacing, sha256
from polytask.model import Model
from polytask.task import Task
from polytask.training import fit

Part: TypeAlias = Literal["train", "validation", "test"]
Weights: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Split:
    """One classification task's examples; the targets' key is the task's name. Validation selects, test is reported."""

    classes: int
    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Experts:
    """One base, and for each task an encoder that was fine-tuned from it while the task's head was frozen.

    Attributes:
        encoder: the network, with the base's weights; in evaluation mode.
        heads: each task's head, frozen, from features to logits.
        base: the base's state dict, ``theta_0``.
        experts: each task's fine-tuned state dict, ``theta_k``.
        data: each task's examples.
    """

    encoder: nn.Module
    heads: Mapping[str, nn.Module]
    base: dict[str, Tensor]
    experts: dict[str, dict[str, Tensor]]
    data: Mapping[str, Split]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.experts)

    @property
    def models(self) -> list[dict[str, Tensor]]:
        """The experts' state dicts, in the order of the tasks."""
        return list(self.experts.values())

    @property
    def vectors(self) -> list[dict[str, Tensor]]:
        """The task vectors ``theta_k - theta_0``, in the order of the tasks."""
        return [{name: expert[name] - theta for name, theta in self.base.items()} for expert in self.models]

    def only(self, tasks: Iterable[str]) -> Experts:
        """Some of the tasks, in this order."""
        return replace(self, experts={task: self.experts[task] for task in tasks})

    def part(self, task: str, part: Part) -> tuple[Inputs, Tensor]:
        """Inputs and labels of a split."""
        inputs, targets = getattr(self.data[task], part)[:]
        return inputs, targets[task]

    @torch.no_grad()
    def logits(self, weights: Weights, task: str, inputs: Inputs, batch_size: int = 256) -> Tensor:
        """What the network with these weights says of ``inputs`` of a task, ``(N, classes)``."""
        size = len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))
        found = []
        for start in range(0, size, batch_size):
            rows = slice(start, start + batch_size)
            piece = inputs[rows] if isinstance(inputs, Tensor) else {name: t[rows] for name, t in inputs.items()}
            found.append(self.heads[task](torch.func.functional_call(self.encoder, dict(weights), (piece,))))
        return torch.cat(found)

    def accuracy(self, weights: Weights, task: str, part: Part = "test") -> float:
        """In percent."""
        inputs, labels = self.part(task, part)
        return 100 * float((self.logits(weights, task, inputs).argmax(1) == labels).float().mean())

    def accuracies(self, weights: Weights, part: Part = "test") -> dict[str, float]:
        """Of one model on all tasks, in percent."""
        return {task: self.accuracy(weights, task, part) for task in self.tasks}

    def mean(self, weights: Weights, part: Part = "test") -> float:
        """The mean accuracy over tasks, in percent: what validation chooses by, and tests report."""
        found = self.accuracies(weights, part)
        return sum(found.values()) / len(found)

    def individual(self, part: Part = "test") -> dict[str, float]:
        """Each expert on its own task, in percent."""
        return {task: self.accuracy(self.experts[task], task, part) for task in self.tasks}


Base: TypeAlias = Callable[[Mapping[str, Split], int], tuple[nn.Module, dict[str, nn.Module]]]
"""From the tasks' examples and a seed to the encoder with its pre-trained weights, and the heads that fit it."""


def train(
    name: str,
    seed: int,
    data: Mapping[str, Split],
    files: Sequence[Path],
    base: Base,
    settings: Mapping[str, Any],
) -> Experts:
    """The experts of a seed, from the user's cache folder when they were made before from the same files by the same code.

    Args:
        name: of the family of experts, for the cache.
        seed: of everything that is drawn.
        data: the tasks' examples.
        files: what ``data`` was read from.
        base: makes the encoder and the heads.
        settings: of fine-tuning, arguments of `polytask.fit`. Parameters of the encoder that do not require a gradient are
            not fine-tuned.
    """
    path = cache_folder() / "experts" / f"{name}-{seed}-{digest(files, base, settings)}.safetensors"
    encoder, heads = base(data, seed)
    for head in heads.values():
        head.requires_grad_(False).eval()
    start = _copied(encoder)

    def make() -> dict[str, Tensor]:
        changed: dict[str, Tensor] = {}
        for task, split in data.items():
            tuned = _tune(encoder, heads[task], task, split, seed, settings)
            changed |= {f"{task}/{key}": value for key, value in tuned.items() if not torch.equal(value, start[key])}
        return changed

    kept = cached(path, make)
    experts = {task: {key: kept.get(f"{task}/{key}", value) for key, value in start.items()} for task in data}
    return Experts(encoder.eval().requires_grad_(False), heads, start, experts, data)


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file; they are made, and the file with them, where it is not there yet or is not whole."""
    try:
        tensors: dict[str, Tensor] = safetensors.load_file(path)
    except (OSError, SafetensorError):
        tensors = make()
        with replacing(path) as temporary:
            safetensors.save_file(tensors, temporary)
    return tensors


def _tune(
    encoder: nn.Module, head: nn.Module, task: str, split: Split, seed: int, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The encoder's weights after training on one task."""
    tuned = copy.deepcopy(encoder)
    model = Model(tuned, [Task.classification(task, classes=split.classes)])
    model.heads[task] = head
    fit(model, split.train, seed=seed, **settings)
    return _copied(tuned)


def _copied(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}


def digest(files: Sequence[Path], base: Base, settings: Mapping[str, Any]) -> str:
    """Of what the experts depend on: data, settings, the code that makes them, and the version of torch."""
    code = [Path(__file__), Path(inspect.getfile(base))]
    parts = [torch.__version__, repr(sorted(settings.items())), *(sha256(path) for path in [*files, *code])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
