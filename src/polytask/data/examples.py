"""Examples in memory, and a data set: its splits, its tasks, and the encoder that suits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from polytask.errors import InputError, suggest
from polytask.task import Task, check_unique

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
"""What an encoder takes: one tensor, or named tensors, with examples along the first dimension."""

Batch: TypeAlias = tuple[Inputs, Mapping[str, Tensor]]
"""Inputs and, for each task with labels, its targets."""

PARTS = ("train", "validation", "test")
"""The splits of a data set."""


@dataclass(frozen=True, eq=False)
class Examples(Dataset[Batch]):
    """Inputs and targets of ``N`` examples, held in memory as tensors.

    ``examples[i]`` with an integer, a slice or a tensor of indices gives ``(inputs, targets)`` of those, so that a batch
    is one indexing operation for each tensor and never a Python loop over examples. It is a ``torch`` data set too.

    Args:
        inputs: a tensor, or named tensors, of first dimension ``N``.
        targets: for each task a tensor of first dimension ``N``.
        redraw: what is drawn anew for each epoch of training, such as pairs of nodes that are not linked: from the inputs
            and a generator to inputs of the same rows. A function of both alone; ``None`` where nothing is.
    """

    inputs: Inputs
    targets: Mapping[str, Tensor]
    redraw: Callable[[Inputs, torch.Generator], Inputs] | None = None

    def __post_init__(self) -> None:
        named = {"inputs": self.inputs} if isinstance(self.inputs, Tensor) else dict(self.inputs)
        if not named:
            raise InputError("examples without inputs, expected a tensor or at least one named tensor")
        named |= {f"target {name!r}": target for name, target in self.targets.items()}
        lengths = {name: len(tensor) for name, tensor in named.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"examples differ in number: {lengths}, expected one length for all tensors")

    def __len__(self) -> int:
        first = self.inputs if isinstance(self.inputs, Tensor) else next(iter(self.inputs.values()))
        return len(first)

    def __getitem__(self, index: int | slice | Tensor) -> Batch:
        inputs = self.inputs
        chosen = inputs[index] if isinstance(inputs, Tensor) else {name: t[index] for name, t in inputs.items()}
        return chosen, {name: target[index] for name, target in self.targets.items()}

    def redrawn(self, generator: torch.Generator) -> Examples:
        """The examples of one epoch, whose generator this is."""
        return self if self.redraw is None else replace(self, inputs=self.redraw(self.inputs, generator))

    def subset(self, index: Tensor) -> Examples:
        """The examples at ``index``, copied; nothing of them is drawn anew."""
        return Examples(*self[index])

    def only(self, tasks: Sequence[str]) -> Examples:
        """The same examples with the targets of ``tasks`` alone."""
        for name in tasks:
            if name not in self.targets:
                raise InputError(f"the examples have no target {name!r}: {suggest(name, self.targets)}")
        return replace(self, targets={name: self.targets[name] for name in tasks})


@dataclass(frozen=True)
class DataSet:
    """Real data ready for training: three splits, tasks, and a suitable encoder.

    Args:
        name: what to call it in reports.
        tasks: the tasks; what they take from training labels (scales, class weights) is filled in here, from ``train``.
        train, validation, test: the splits. Validation data serves selection, test data only the final figures.
        encoder: builds a new encoder; the module it returns has the attribute ``width``.
        settings: the defaults that suit this data, as keyword arguments of `polytask.fit` (batch size, learning rate, ...).
        provenance: where the data came from (paths, hashes, seeds), as JSON values for reports and saved models.
        schema: how raw input becomes ``inputs`` (for tables: the fitted preprocessing), ``None`` when inputs are tensors.
    """

    name: str
    tasks: Sequence[Task]
    train: Examples
    validation: Examples
    test: Examples
    encoder: Callable[[], nn.Module]
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: Any = None

    def __post_init__(self) -> None:
        check_unique(self.tasks)
        for split in PARTS:
            examples = getattr(self, split)
            if len(examples) == 0:
                raise InputError(f"{self.name}: the {split} split has no examples, expected at least one")
            for task in self.tasks:
                if task.name not in examples.targets:
                    known = suggest(task.name, examples.targets)
                    raise InputError(f"{self.name}: the {split} split has no target {task.name!r}: {known}")
        fitted = tuple(task.fitted(self.train.targets[task.name]) for task in self.tasks)
        object.__setattr__(self, "tasks", fitted)

    def task(self, name: str) -> Task:
        """The task called ``name``; an unknown name is an error that suggests the nearest."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise InputError(f"{self.name}: unknown task {name!r}: {suggest(name, [t.name for t in self.tasks])}")

    def only(self, names: Sequence[str]) -> DataSet:
        """The same data with some of its tasks."""
        return replace(
            self,
            tasks=[self.task(name) for name in names],
            train=self.train.only(names),
            validation=self.validation.only(names),
            test=self.test.only(names),
        )


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors of a batch (tuples, lists and dictionaries of them) on ``device``; anything else as it is."""
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(to_device(item, device) for item in value)
    return value
