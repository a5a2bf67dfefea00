"""The task: what to predict, how wrong a prediction is, and how good a model is at it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from polytask.errors import InputError, suggest

if TYPE_CHECKING:
    from torchmetrics import Metric

MISSING = -100
"""The integer label that means *not known*, as in ``torch.nn.functional.cross_entropy``; float labels use NaN."""


class MetricSpec(NamedTuple):
    """A metric of a task kind: how to build it, and which value a perfect prediction reaches."""

    build: Callable[[], Metric]
    higher_is_better: bool

    @property
    def perfect(self) -> float:
        """1 for a score, 0 for an error."""
        return 1.0 if self.higher_is_better else 0.0


class Task(ABC):
    """One thing to predict: a head, a loss, metrics, and how to read the head's output.

    A kind of task is a subclass; the kinds that come with polytask are built by the class methods of this class
    (``Task.classification("left", classes=10)``). To add a kind, subclass, set ``kind``, and write `head`, `loss`, `decode`
    and `metrics`; the subclass is then known by its ``kind`` everywhere, from the command line to saved models.

    Shapes: ``N`` rows. A head maps the shared representation, ``(N, width)`` (``(N, width, H, W)`` for dense kinds), to an
    *output*; `decode` maps an output to a *prediction* in the units of the user (probabilities, degrees, dollars).

    A missing label (NaN, or `MISSING` for integer labels) is data, not an error: it counts neither in the loss nor in a
    metric.

    Args:
        name: the task's name; also the column's name for tables. Not empty, no ``.`` (names are part of parameter names).
        metric: the name of the main metric, by which models are compared; ``None`` takes the kind's first.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Task]]] = {}
    integer_labels: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in cls.__dict__:
            Task.kinds[cls.kind] = cls

    def __init__(self, name: str, *, metric: str | None = None) -> None:
        if not name or "." in name:
            raise InputError(f"task name {name!r}: expected a name that is not empty and has no '.'")
        self.name = name
        specs = self.metrics()
        if metric is not None and metric not in specs:
            raise InputError(f"task {name!r}: unknown metric {metric!r} for {self.kind}: {suggest(metric, specs)}")
        self.metric = metric or next(iter(specs))

    # What a kind says of itself

    @abstractmethod
    def head(self, width: int) -> nn.Module:
        """A new head for a representation of ``width`` features."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean loss over the labels that are present, a scalar; 0 (with zero gradient) where none is."""

    @abstractmethod
    def decode(self, output: Tensor) -> Tensor:
        """The prediction in the user's units: probabilities for labels, values for regression."""

    @abstractmethod
    def metrics(self) -> Mapping[str, MetricSpec]:
        """The kind's metrics by name, the most usual first. `Task.__init__` calls it: set your own fields first."""

    @abstractmethod
    def constant(self, target: Tensor) -> Tensor:
        """The best prediction that ignores the inputs, one row: class frequencies, or the mean. The zero of `skill`."""

    def update(self, metric: Metric, prediction: Tensor, target: Tensor) -> None:
        """Add the rows whose label is present to a running ``metric``."""
        present = self.present(target)
        if bool(present.any()):
            metric.update(prediction[present], target[present])

    def fitted(self, target: Tensor) -> Task:
        """This task with what it takes from the *training* labels (scale, class weights) filled in; by default itself."""
        return self

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that build this task again, as JSON values."""
        return {"metric": self.metric}

    def names(self) -> list[str]:
        """The names of the columns of a prediction, as a table of predictions shows them."""
        return [self.name]

    def table(self, prediction: Tensor) -> dict[str, Any]:
        """A prediction as columns of a table: a name and a list or array of ``N`` values for each."""
        columns = prediction.reshape(len(prediction), -1)
        return {name: columns[:, i].numpy() for i, name in enumerate(self.names())}

    # What all kinds share

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value of the main metric is better."""
        return self.metrics()[self.metric].higher_is_better

    def present(self, target: Tensor) -> Tensor:
        """Which labels are known, as booleans of the target's shape."""
        return target != MISSING if self.integer_labels else ~torch.isnan(target)

    def count(self, target: Tensor) -> Tensor:
        """How many labels (or how much class weight) `loss` averages over, a scalar on the target's device."""
        return self.present(target).sum()

    def missing(self, shape: Sequence[int], device: torch.device | None = None) -> Tensor:
        """Labels of ``shape`` that are all missing."""
        if self.integer_labels:
            return torch.full(tuple(shape), MISSING, dtype=torch.int64, device=device)
        return torch.full(tuple(shape), torch.nan, device=device)

    def to_dict(self) -> dict[str, Any]:
        """This task as JSON values; `from_dict` builds it again."""
        return {"kind": self.kind, "name": self.name, **self.settings()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Task:
        """The task that `to_dict` described."""
        values = dict(values)
        kind, name = values.pop("kind"), values.pop("name")
        return Task.of_kind(kind, name, **values)

    @staticmethod
    def of_kind(kind: str, name: str, **settings: Any) -> Task:
        """A task by the name of its kind; an unknown kind is an error that suggests the nearest."""
        if kind not in Task.kinds:
            raise InputError(f"task {name!r}: unknown kind {kind!r}: {suggest(kind, Task.kinds)}")
        return Task.kinds[kind](name, **settings)

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.settings().items())
        return f"Task.{self.kind}({self.name!r}, {settings})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.kind, self.name))

    # The kinds that come with polytask, in the field's words

    @staticmethod
    def binary(name: str, **settings: Any) -> Task:
        """A yes-or-no label, 0 or 1: see `polytask.task.Binary`."""
        return Task.of_kind("binary", name, **settings)

    @staticmethod
    def classification(name: str, classes: int | Sequence[str], **settings: Any) -> Task:
        """One label out of several: see `polytask.task.Classification`."""
        return Task.of_kind("classification", name, classes=classes, **settings)

    @staticmethod
    def multilabel(name: str, labels: int | Sequence[str], **settings: Any) -> Task:
        """Any number of labels at once: see `polytask.task.Multilabel`."""
        return Task.of_kind("multilabel", name, labels=labels, **settings)

    @staticmethod
    def ordinal(name: str, classes: int | Sequence[str], **settings: Any) -> Task:
        """Ordered labels: see `polytask.task.Ordinal`."""
        return Task.of_kind("ordinal", name, classes=classes, **settings)

    @staticmethod
    def regression(name: str, outputs: int | Sequence[str] = 1, **settings: Any) -> Task:
        """One or several numbers: see `polytask.task.Regression`."""
        return Task.of_kind("regression", name, outputs=outputs, **settings)

    @staticmethod
    def segmentation(name: str, classes: int | Sequence[str], **settings: Any) -> Task:
        """A label for each pixel: see `polytask.task.Segmentation`."""
        return Task.of_kind("segmentation", name, classes=classes, **settings)

    @staticmethod
    def pixel_binary(name: str, **settings: Any) -> Task:
        """A yes-or-no label for each pixel: see `polytask.task.PixelBinary`."""
        return Task.of_kind("pixel_binary", name, **settings)

    @staticmethod
    def pixel_regression(name: str, outputs: int | Sequence[str] = 1, **settings: Any) -> Task:
        """Numbers for each pixel, such as depth: see `polytask.task.PixelRegression`."""
        return Task.of_kind("pixel_regression", name, outputs=outputs, **settings)


def complete(target: Tensor) -> bool:
    """Whether no label of ``target`` is missing, where that is cheap to ask; elsewhere ``False``, which is always safe.

    The loss of complete labels is torch's own, at its speed; a loss with a mask takes several operations more. An
    accelerator would have to be waited for, and under ``torch.compile`` and ``vmap`` a value cannot be looked at.
    """
    if target.device.type != "cpu" or torch.compiler.is_compiling() or target.numel() == 0:
        return False
    try:
        # A sum is NaN when one of its terms is; missing integers are negative.
        total = target.sum().item() if target.is_floating_point() else target.min().item()
    except RuntimeError:
        return False
    return math.isfinite(total) if target.is_floating_point() else total >= 0


def check_unique(tasks: Sequence[Task]) -> None:
    """Raise `InputError` unless there is at least one task and no two have the same name."""
    if not tasks:
        raise InputError("no task was given, expected at least one")
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise InputError(f"two tasks are named {task.name!r}, expected distinct names")
        seen.add(task.name)


def class_names(classes: int | Sequence[str], least: int, what: str) -> tuple[str, ...]:
    """Names for ``classes``, which is their number or their names; `InputError` when fewer than ``least`` or repeated."""
    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(str(c) for c in classes)
    if len(names) < least:
        raise InputError(f"{what}: {len(names)} given, expected at least {least}")
    if len(set(names)) < len(names):
        raise InputError(f"{what}: the names {list(names)} repeat, expected distinct ones")
    return names
