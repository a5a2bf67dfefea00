"""Many experts as a base, a multi-task vector and a mask for each, one packed bit a coordinate.

Wang, Dimitriadis, Ortiz-Jimenez, Fleuret and Frossard, *Localizing task information for improved model merging and
compression*, ICML 2024 (TALL-masks and Consensus merging).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.func import functional_call

from polytask.data.examples import Inputs
from polytask.errors import InputError
from polytask.merge._models import save_tensors
from polytask.merge._task_vectors import (
    Weights,
    check_fits,
    check_names,
    check_same,
    delta_of,
    expert_tensor,
    finite,
    moved,
    multi_task_vector,
)
from polytask.merge.masks import agreement, check_packed, check_scale, consensus, pack, tall_mask, unpack

FORMAT = "polytask task masks 1"
"""What a file of task masks says it is, with the version of its layout."""


@dataclass(frozen=True)
class Bytes:
    """What task masks store, beside what separate models would.

    Attributes:
        stored: bytes of the base, the multi-task vector, the packed masks and the tensors kept for each task.
        separate: bytes of the base and one model for each task.
    """

    stored: int
    separate: int

    @property
    def ratio(self) -> float:
        """``stored / separate``: for T tasks in float32, ``(2 * 32 + T) / (32 * (T + 1))``, 0.125 at T = 20."""
        return self.stored / self.separate

    @classmethod
    def of(cls, sizes: Iterable[int], tasks: int, bytes_each: int = 4) -> Self:
        """What `TaskMasks` will store of a model with tensors of these sizes, none of them kept for a task by itself.

        >>> Bytes.of([342_562_049], tasks=20).ratio
        0.125...

        Args:
            sizes: how many values each tensor has.
            tasks: T, the number of experts.
            bytes_each: of a value of the base, of the multi-task vector and of the separate models.
        """
        sizes = list(sizes)
        dense = bytes_each * sum(sizes)
        return cls(stored=2 * dense + tasks * sum((size + 7) // 8 for size in sizes), separate=(tasks + 1) * dense)


class TaskMasks:
    """Many experts as one base, one multi-task vector and one bit mask for each: ``theta_t = theta_0 + m_t * tau_MTL``.

    What cannot be masked, tensors that are not floating and the running statistics of BatchNorm, is kept as a copy for
    each task whose copy differs from the base's. Arithmetic is in float32 (in float64 for float64 weights), the result in
    the base's type.

    >>> base = {"w": torch.zeros(4)}
    >>> experts = {"a": {"w": torch.tensor([1.0, 0, 2, -1])}, "b": {"w": torch.tensor([1.0, 1, -1, 0])}}
    >>> masks = TaskMasks.build(base, experts)
    >>> masks.mask("a", "w").tolist(), masks.weights("a")["w"].tolist()
    ([True, False, True, True], [2.0, 0.0, 1.0, -1.0])
    >>> masks.counts().tolist()  # no coordinate that no task uses, two that one task uses, two that both use
    [0, 2, 2]

    `build` makes one from checkpoints. The constructor takes the parts, for masks that were made in another way, or to keep
    the vector in half precision; it makes no copies.

    Args:
        base: ``theta_0`` by name.
        vector: ``tau_MTL`` by name, at coefficient 1, floating, in the base's shapes: the tensors that are masked.
        masks: by task and by name of the vector's tensors, what `pack` gives for the task's mask.
        kept: by task, the tensors outside the vector in which the task differs from the base.

    Raises:
        InputError: names, shapes or types do not fit each other, or a value is not finite.

    Attributes:
        base, vector, masks, kept: as given, in dictionaries of their own.
    """

    def __init__(
        self,
        base: Weights,
        vector: Weights,
        masks: Mapping[str, Weights],
        kept: Mapping[str, Weights] | None = None,
    ) -> None:
        self.base = {name: theta.detach() for name, theta in base.items()}
        for name in vector:
            if name not in self.base:
                raise InputError(f"the multi-task vector has tensor {name!r}, which the base lacks")
        self.vector = {name: vector[name].detach() for name in self.base if name in vector}
        self.masks = {task: dict(packed) for task, packed in masks.items()}
        self.kept = {task: dict((kept or {}).get(task, {})) for task in self.masks}
        if not self.masks:
            raise InputError("no tasks, expected at least one")
        for task in kept or {}:
            if task not in self.masks:
                raise InputError(f"tensors are kept for task {task!r}, which has no mask")
        self._check_vector()
        for task in self.masks:
            self._check_task(task)

    @classmethod
    def build(
        cls,
        base: Weights,
        experts: Mapping[str, Weights],
        scale: float | Mapping[str, float] = 0.4,
        vector: Literal["sum"] | Weights = "sum",
    ) -> Self:
        """The masks of ``experts``, by `tall_mask`, one tensor at a time.

        Args:
            base: ``theta_0``, a state dict. It is copied, so that switching a model never reaches it. A tensor with two
                names (tied weights) is stored under each: leave one out to store it once.
            experts: fine-tuned state dicts by task, with the base's names and shapes. Floating types may differ.
            scale: lambda, for all tasks or by task, >= 0, such as `best_scales` finds. The paper has no default; 0.4 is the
                middle of its grid.
            vector: ``tau_MTL``: "sum" for the sum of the task vectors, or tensors by name, such as what TIES merges (the
                paper sums the agreeing entries). Its coefficient is 1: never the one that the merged model is best with.

        Raises:
            InputError: a name is missing, is one too many or has another shape, a value is not finite, or a scale is
                not a finite number >= 0.
        """
        check_names(base, experts)
        if isinstance(scale, Mapping):
            check_same(scale, experts, "the scales", "task", "the experts")
        scales = dict(scale) if isinstance(scale, Mapping) else dict.fromkeys(experts, scale)
        for task, value in scales.items():
            check_scale(value, f"the scale of task {task!r}")
        copied = {name: theta.detach().clone(memory_format=torch.contiguous_format) for name, theta in base.items()}
        vector = multi_task_vector(copied, experts, vector)
        masks: dict[str, dict[str, Tensor]] = {task: {} for task in experts}
        kept: dict[str, dict[str, Tensor]] = {task: {} for task in experts}
        for task, expert in experts.items():
            for name, theta in copied.items():
                if name in vector:
                    mask = tall_mask(delta_of(task, expert, name, theta), vector[name], scales[task])
                    masks[task][name] = pack(mask)
                elif not torch.equal(own := expert_tensor(task, expert, name, theta), theta):
                    kept[task][name] = own.clone(memory_format=torch.contiguous_format)
        return cls(copied, vector, masks, kept)

    def __repr__(self) -> str:
        values = sum(theta.numel() for theta in self.base.values())
        return f"TaskMasks({len(self.tasks)} tasks, {len(self.base)} tensors of {values:,} values)"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(self.masks)

    def mask(self, task: str, name: str) -> Tensor:
        """The task's mask of one tensor of the vector: bool, in the tensor's shape."""
        self._check_known(task)
        if name not in self.vector:
            raise InputError(f"tensor {name!r} is not masked")
        return self._mask(task, name)

    def weights(self, task: str) -> dict[str, Tensor]:
        """``theta_0 + m_t * tau_MTL``, the task's whole state dict: new tensors of the base's shapes and types."""
        self._check_known(task)
        return {name: self._weight(task, name) for name in self.base}

    def apply(self, module: nn.Module, task: str) -> None:
        """Write the task's weights into ``module``, in place, from any other task's: one tensor is made at a time.

        The module's state dict must have the stored names and shapes; its device and floating type may differ. A name that
        is tied to a stored one need not be stored itself. Everything is checked before the first tensor is written.

        Raises:
            InputError: a name is missing or one too many, a shape differs, or the module ties two tensors that differ here.
        """
        targets = self._targets(module, task)
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(self._weight(task, name))

    def forward(self, module: nn.Module, inputs: Inputs, tasks: Sequence[str]) -> Tensor:
        """``module(inputs)`` for a batch in which each example has its own task's weights; ``module`` stays as it is.

        The examples are grouped by task; each group is one call with that task's weights, which are made for the call and
        dropped after it. Modes are the module's own: in training mode, BatchNorm sees each group apart.

        Args:
            module: takes ``inputs`` and returns a tensor of outputs, examples first, alike for all tasks.
            inputs: a tensor, or named tensors, of N examples, on the device of the masks and of the module.
            tasks: the task of each example, N names.

        Returns:
            The outputs ``(N, ...)`` in the order of the examples.

        Raises:
            InputError: an unknown task, another number of examples than of tasks, a module that does not fit (see `apply`),
                or outputs that differ in shape between tasks.
        """
        named = {"inputs": inputs} if isinstance(inputs, Tensor) else inputs
        for name, tensor in named.items():
            if len(tensor) != len(tasks):
                raise InputError(f"{name} of {len(tensor)} examples, {len(tasks)} tasks: expected a task for each example")
        if not tasks:
            raise InputError("a batch of no examples, expected at least one")
        groups: dict[str, list[int]] = {}
        for place, task in enumerate(tasks):
            groups.setdefault(task, []).append(place)
        targets = {task: self._targets(module, task) for task in groups}
        outputs: list[Tensor] = []
        for task, places in groups.items():
            weights = {name: self._weight(task, name).to(target) for name, target in targets[task].items()}
            chosen = {name: tensor[torch.tensor(places, device=tensor.device)] for name, tensor in named.items()}
            output = functional_call(module, weights, (chosen["inputs"] if isinstance(inputs, Tensor) else chosen,))
            if not isinstance(output, Tensor) or output.shape[:1] != (len(places),):
                found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
                raise InputError(f"task {task!r}: output of {found}, expected a tensor of {len(places)} examples")
            if outputs and output.shape[1:] != outputs[0].shape[1:]:
                first = f"task {next(iter(groups))!r} has {tuple(outputs[0].shape[1:])}"
                raise InputError(f"task {task!r}: outputs of shape {tuple(output.shape[1:])}, but {first}")
            outputs.append(output)
        order = torch.tensor([place for places in groups.values() for place in places], device=outputs[0].device)
        return torch.cat(outputs)[order.argsort()]

    def consensus(self, k: int = 2) -> dict[str, Tensor]:
        """``tau_cons``, the multi-task vector where at least ``k`` tasks use it and zero elsewhere, by name of its tensors.

        The merged model is ``theta_0 + alpha * tau_cons``; the paper chooses alpha from 0.1, 0.2, ..., 1 on validation data.
        With k = 1 the catastrophic coordinates are gone, with k = 2 (the paper's default) the selfish ones too; k = 0 is the
        multi-task vector, and more than the number of tasks gives zeros.
        """
        return {name: vector * consensus(self._masks(name), k) for name, vector in self.vector.items()}

    def counts(self) -> Tensor:
        """How many coordinates 0, 1, ..., T tasks use, int64 ``(T + 1,)``: catastrophic, selfish, ..., universal."""
        length = len(self.masks) + 1
        counts = [torch.bincount(agreement(self._masks(name)).flatten(), minlength=length) for name in self.vector]
        return torch.stack([count.cpu() for count in counts]).sum(0)

    def density(self, task: str) -> float:
        """The share of the coordinates that the task uses: what a `magnitude_mask` of equal size is given."""
        self._check_known(task)
        used = sum(int(self._mask(task, name).sum()) for name in self.vector)
        return used / sum(vector.numel() for vector in self.vector.values())

    def bytes(self) -> Bytes:
        """How many bytes are stored, beside the base and the experts as separate models in the base's types."""
        base = _nbytes(self.base)
        own = sum(_nbytes(tensors) for part in (self.masks, self.kept) for tensors in part.values())
        return Bytes(stored=base + _nbytes(self.vector) + own, separate=base * (len(self.masks) + 1))

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all: beside ``path`` first, then in its place.

        Its tensors are ``base/NAME``, ``vector/NAME``, ``mask/I/NAME`` (uint8, see `pack`) and ``kept/I/NAME`` for the I-th
        task, counted from 0; its metadata has ``format``, and as JSON ``tasks``, the names in order, and ``shapes``, each
        base tensor's shape by name.

        Raises:
            InputError: the folder cannot be written, or the disk is full.
        """
        tensors = {f"base/{name}": tensor for name, tensor in self.base.items()}
        tensors |= {f"vector/{name}": tensor for name, tensor in self.vector.items()}
        for kind, part in (("mask", self.masks), ("kept", self.kept)):
            for index, task in enumerate(self.tasks):
                tensors |= {f"{kind}/{index}/{name}": tensor for name, tensor in part[task].items()}
        about = {"tasks": list(self.tasks), "shapes": {name: list(theta.shape) for name, theta in self.base.items()}}
        metadata = {"format": FORMAT, **{key: json.dumps(value) for key, value in about.items()}}
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The task masks in a file that `save` wrote. Its tensors are mapped from the file, and each is looked at once.

        Raises:
            InputError: the file is missing, truncated or no file of task masks, or a tensor in it is missing, one too many,
                of another shape or type than it should be, or not finite. The message names the file and the tensor.
        """
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except FileNotFoundError as error:
            raise InputError(f"{path}: there is no such file") from error
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged, not a whole safetensors file ({error})") from error
        try:
            tasks, shapes = _read_metadata(metadata)
            parts = _sort(tensors, tasks)
            base = parts.pop("base", {})
            check_same(base, shapes, "the base", "tensor", "the file's shapes")
            for name, shape in shapes.items():
                if list(base[name].shape) != shape:
                    raise InputError(f"tensor 'base/{name}' of shape {list(base[name].shape)}, expected {shape}")
            masks = {task: parts.get(f"mask/{index}", {}) for index, task in enumerate(tasks)}
            kept = {task: parts.get(f"kept/{index}", {}) for index, task in enumerate(tasks)}
            return cls({name: base[name] for name in shapes}, parts.get("vector", {}), masks, kept)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def _mask(self, task: str, name: str) -> Tensor:
        vector = self.vector[name]
        return unpack(self.masks[task][name], vector.numel(), vector.shape)

    def _masks(self, name: str) -> Iterator[Tensor]:
        return (self._mask(task, name) for task in self.masks)

    def _weight(self, task: str, name: str) -> Tensor:
        theta = self.base[name]
        if name in self.vector:
            return torch.where(self._mask(task, name), moved(theta, self.vector[name]), theta)
        return self.kept[task].get(name, theta).clone()

    def _targets(self, module: nn.Module, task: str) -> dict[str, Tensor]:
        """The module's tensors to write, by stored name, each once however many names the module has for it."""
        self._check_known(task)
        names: dict[int, list[str]] = {}
        tensors: dict[str, Tensor] = {}
        for name, value in module.state_dict(keep_vars=True).items():  # the tensors themselves, so that tied ones are one
            if isinstance(value, Tensor):
                tensors[name] = value
                names.setdefault(id(value), []).append(name)
        for name in self.base:
            if name not in tensors:
                raise InputError(f"the module has no tensor {name!r}, which the task masks have")
        targets: dict[str, Tensor] = {}
        for tied in names.values():
            stored = [name for name in tied if name in self.base]
            if not stored:
                raise InputError(f"the module's tensor {tied[0]!r} is not in the task masks")
            first, target = stored[0], tensors[tied[0]]
            theta = self.base[first]
            if target.shape != theta.shape or target.is_floating_point() != theta.is_floating_point() or target.is_meta:
                found = f"{target.dtype} of shape {tuple(target.shape)} on {target.device}"
                raise InputError(f"the module's tensor {first!r} is {found}, expected {theta.dtype}, {tuple(theta.shape)}")
            for other in stored[1:]:
                if not torch.equal(self._weight(task, other), self._weight(task, first)):
                    raise InputError(f"the module ties {first!r} and {other!r}, which differ for task {task!r}")
            targets[first] = target
        return targets

    def _check_known(self, task: str) -> None:
        if task not in self.masks:
            raise InputError(f"unknown task {task!r}, expected one of {', '.join(map(repr, self.masks))}")

    def _check_vector(self) -> None:
        if not sum(vector.numel() for vector in self.vector.values()):
            raise InputError("a multi-task vector of no values, expected a floating tensor to mask")
        for name, vector in self.vector.items():
            check_fits(vector, self.base[name], f"the multi-task vector's tensor {name!r}")
            if not vector.is_floating_point():
                raise InputError(f"the multi-task vector's tensor {name!r} is {vector.dtype}, expected a floating type")
            if not finite(moved(self.base[name], vector)):
                for what, tensor in (("base", self.base[name]), ("multi-task vector", vector)):
                    if not finite(tensor):
                        raise InputError(f"the {what}'s tensor {name!r} has values that are not finite")
                raise InputError(f"tensor {name!r}: base + multi-task vector is too large for {self.base[name].dtype}")
        for name in self.base.keys() - self.vector.keys():
            if not finite(self.base[name]):
                raise InputError(f"the base's tensor {name!r} has values that are not finite")

    def _check_task(self, task: str) -> None:
        check_same(self.masks[task], self.vector, f"the mask of task {task!r}", "tensor", "the multi-task vector")
        for name, vector in self.vector.items():
            try:
                check_packed(self.masks[task][name], vector.numel())
            except InputError as error:
                raise InputError(f"task {task!r}, tensor {name!r}: {error}") from error
        for name, own in self.kept[task].items():
            if name not in self.base or name in self.vector:
                raise InputError(f"task {task!r} keeps tensor {name!r}, expected a tensor of the base that is not masked")
            check_fits(own, self.base[name], f"task {task!r}: the tensor {name!r} that it keeps")
            if own.dtype != self.base[name].dtype:
                raise InputError(f"task {task!r} keeps tensor {name!r} as {own.dtype}, expected {self.base[name].dtype}")
            if not finite(own):
                raise InputError(f"task {task!r} keeps tensor {name!r} with values that are not finite")


def _nbytes(tensors: Weights) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _read_metadata(metadata: Mapping[str, str]) -> tuple[list[str], dict[str, list[int]]]:
    if metadata.get("format") != FORMAT:
        raise InputError(f"format {metadata.get('format')!r}, expected {FORMAT!r}")
    found: dict[str, Any] = {}
    for key in ("tasks", "shapes"):
        try:
            found[key] = json.loads(metadata.get(key, ""))
        except (ValueError, RecursionError) as error:
            raise InputError(f"metadata {key!r} is not JSON ({error})") from error
    tasks, shapes = found["tasks"], found["shapes"]
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks) or len(set(tasks)) < len(tasks):
        raise InputError("metadata 'tasks': expected a list of different names")
    if not isinstance(shapes, dict) or not all(isinstance(shape, list) for shape in shapes.values()):
        raise InputError("metadata 'shapes': expected a shape for each name")
    return tasks, shapes


def _sort(tensors: Weights, tasks: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """A file's tensors by what comes before their name: base, vector, mask/I, kept/I."""
    heads = ["base", "vector", *(f"{kind}/{index}" for kind in ("mask", "kept") for index in range(len(tasks)))]
    parts: dict[str, dict[str, Tensor]] = {head: {} for head in heads}
    for key, tensor in tensors.items():
        first, _, name = key.partition("/")
        if first in ("mask", "kept"):
            index, _, name = name.partition("/")
            first = f"{first}/{index}"
        if first not in parts:
            raise InputError(f"tensor {key!r}, expected base/, vector/, or mask/I/ or kept/I/ of {len(tasks)} tasks")
        parts[first][name] = tensor
    return parts
