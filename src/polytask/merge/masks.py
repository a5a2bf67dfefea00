"""Task masks: which coordinates of a multi-task vector each task needs, one packed bit a coordinate.

Wang, Dimitriadis, Ortiz-Jimenez, Fleuret and Frossard, *Localizing task information for improved model merging and
compression*, ICML 2024 (TALL-masks and Consensus merging).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import safetensors.torch as safetensors
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.func import functional_call

from polytask.data.examples import Inputs
from polytask.errors import InputError
from polytask.files import replacing
from polytask.merge._models import wide

Weights: TypeAlias = Mapping[str, Tensor]
"""A state dict: tensors by name. It may be lazy: one tensor at a time is asked for."""

SCALES = (0.2, 0.3, 0.4, 0.5, 0.6)
"""The paper's grid for the scale of a task's mask."""

FORMAT = "polytask task masks 1"
"""What a file of task masks says it is, with the version of its layout."""


# Masks of flat tensors


def tall_mask(delta: Tensor, merged: Tensor, scale: float) -> Tensor:
    """The coordinates in which the multi-task vector serves the task: ``|tau_t| > scale * |tau_MTL - tau_t|``.

    With ``scale`` 1, these are the coordinates that are nearer to the expert in the multi-task model than in the base. The
    inequality is strict, as in the authors' code (the paper prints >=): a coordinate that no expert moved is not in the
    mask. A larger scale gives a subset; scale 0 gives the support of the task vector.

    Args:
        delta: the task vector ``tau_t``, expert minus base, any shape, finite.
        merged: the multi-task vector ``tau_MTL`` at coefficient 1, of the same shape, such as the sum of the task vectors.
        scale: lambda, finite, >= 0. The paper chooses it for each task from `SCALES` on validation data.

    Returns:
        bool, of the same shape. Half precision is compared in float32.
    """
    if delta.shape != merged.shape:
        raise InputError(f"a task vector of shape {tuple(delta.shape)}, a multi-task vector of {tuple(merged.shape)}")
    _check_scale(scale, "scale")
    delta, merged = delta.to(wide(delta.dtype)), merged.to(wide(merged.dtype))
    return delta.abs() > (merged - delta).abs_().mul_(scale)


def magnitude_mask(delta: Tensor, density: float) -> Tensor:
    """The ``round(density * n)`` coordinates of the largest ``|tau_t|``; of equal ones, the first. The paper's baseline.

    Args:
        delta: the task vector, ``(n,)``, finite; the paper takes the whole model's at once.
        density: the share that is kept, from 0 to 1 (the paper's default is 0.1).

    Returns:
        bool ``(n,)``.
    """
    if delta.ndim != 1:
        raise InputError(f"a task vector of shape {tuple(delta.shape)}, expected (n,)")
    if not 0 <= density <= 1:
        raise InputError(f"density {density}: expected a number from 0 to 1")
    n = len(delta)
    kept = round(density * n)
    if kept in (0, n):
        return torch.full((n,), kept > 0, device=delta.device)
    size = delta.to(wide(delta.dtype)).abs()
    threshold = size.kthvalue(n - kept + 1).values
    mask = size > threshold
    mask[(size == threshold).nonzero().flatten()[: kept - int(mask.sum())]] = True
    return mask


def agreement(masks: Iterable[Tensor]) -> Tensor:
    """How many of the masks, ``(K, n)`` or K tensors of one shape, hold each coordinate: int32.

    The paper calls a coordinate *catastrophic* where this is 0 (no task wants what the multi-task vector has there) and
    *selfish* where it is 1.
    """
    counts: Tensor | None = None
    for mask in masks:  # one by one, so that a generator never has all of them in memory
        counts = mask.to(torch.int32, copy=True) if counts is None else counts.add_(mask)
    if counts is None:
        raise InputError("agreement of no masks, expected at least one")
    return counts


def consensus(masks: Iterable[Tensor], k: int) -> Tensor:
    """The coordinates that at least ``k`` of the masks hold, bool: k = 0 holds all of them, more than K holds none."""
    _check_k(k)
    return agreement(masks) >= k


# Packed bits


def pack(mask: Tensor) -> Tensor:
    """The bits of a bool tensor of any shape, row by row, eight to a byte: uint8 ``(ceil(n / 8),)``.

    The first value is a byte's highest bit, as in `numpy.packbits`; what is left of the last byte is zero.
    """
    if mask.dtype != torch.bool:
        raise InputError(f"a mask of type {mask.dtype}, expected torch.bool")
    return torch.from_numpy(np.packbits(mask.cpu().numpy().ravel())).to(mask.device)


def unpack(packed: Tensor, numel: int, shape: Sequence[int] | None = None) -> Tensor:
    """The bool tensor that `pack` packed.

    Args:
        packed: uint8 ``(ceil(numel / 8),)``.
        numel: how many values the mask has: the bits behind them are cut off, and must be zero.
        shape: the shape of the result, of ``numel`` values; ``(numel,)`` when left out.
    """
    _check_packed(packed, numel)
    if shape is not None and math.prod(shape) != numel:
        raise InputError(f"a mask of {numel} values, expected {math.prod(shape)} for the shape {tuple(shape)}")
    bits = torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=numel)).to(packed.device).view(torch.bool)
    return bits if shape is None else bits.view(torch.Size(shape))


# The scale of each task's mask


def best_scales(
    base: Weights,
    experts: Mapping[str, Weights],
    evaluate: Callable[[str, dict[str, Tensor]], float],
    scales: Sequence[float] = SCALES,
    vector: Literal["sum"] | Weights = "sum",
) -> dict[str, float]:
    """For each task, the scale whose masked weights score best: ``len(scales)`` evaluations a task.

    Args:
        base: ``theta_0``, as for `TaskMasks.build`.
        experts: the experts' weights by task, as there.
        evaluate: ``evaluate(task, weights)``, the score on that task's *validation* data of the model with these weights,
            ``theta_0 + m_t * tau_MTL``; higher is better. The weights are the callback's to keep.
        scales: the grid. Of equal scores, the scale that comes first wins.
        vector: the multi-task vector, as there.

    Returns:
        The best scale of each task, as `TaskMasks.build` takes it.

    Raises:
        InputError: the weights do not fit each other, the grid is empty, or a score is not a finite number.
    """
    if not scales:
        raise InputError("no scales to choose from, expected at least one")
    for scale in scales:
        _check_scale(scale, "scale")
    _check_names(base, experts)
    vector = _multi_task_vector(base, experts, vector)
    best: dict[str, float] = {}
    for task, expert in experts.items():
        scores = []
        for scale in scales:
            weights = {}
            for name, theta in base.items():
                theta = theta.detach()
                if name in vector:
                    mask = tall_mask(_delta(task, expert, name, theta), vector[name], scale)
                    weights[name] = torch.where(mask, _moved(theta, vector[name]), theta)
                else:
                    weights[name] = _like(task, expert, name, theta).clone()
            scores.append(float(evaluate(task, weights)))
            if not math.isfinite(scores[-1]):
                raise InputError(f"task {task!r} scores {scores[-1]} at scale {scale}, expected a finite number")
        best[task] = scales[scores.index(max(scores))]
    return best


# Base, multi-task vector and masks


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
        _check_names(base, experts)
        if isinstance(scale, Mapping):
            _check_same(scale, experts, "the scales", "task", "the experts")
        scales = dict(scale) if isinstance(scale, Mapping) else dict.fromkeys(experts, scale)
        for task, value in scales.items():
            _check_scale(value, f"the scale of task {task!r}")
        copied = {name: theta.detach().clone(memory_format=torch.contiguous_format) for name, theta in base.items()}
        vector = _multi_task_vector(copied, experts, vector)
        masks: dict[str, dict[str, Tensor]] = {task: {} for task in experts}
        kept: dict[str, dict[str, Tensor]] = {task: {} for task in experts}
        for task, expert in experts.items():
            for name, theta in copied.items():
                if name in vector:
                    mask = tall_mask(_delta(task, expert, name, theta), vector[name], scales[task])
                    masks[task][name] = pack(mask)
                elif not torch.equal(own := _like(task, expert, name, theta), theta):
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
        _check_k(k)
        return {name: vector * (self._agreement(name) >= k) for name, vector in self.vector.items()}

    def counts(self) -> Tensor:
        """How many coordinates 0, 1, ..., T tasks use, int64 ``(T + 1,)``: catastrophic, selfish, ..., universal."""
        length = len(self.masks) + 1
        counts = [torch.bincount(self._agreement(name).flatten(), minlength=length) for name in self.vector]
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
        try:
            with replacing(path) as temporary:
                mode = temporary.stat().st_mode & 0o777
                safetensors.save_file(_apart(tensors), temporary, metadata)
                temporary.chmod(mode)  # safetensors keeps a file to its owner; this one is for whoever may read the folder
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be written ({error})") from error

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
            _check_same(base, shapes, "the base", "tensor", "the file's shapes")
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

    def _agreement(self, name: str) -> Tensor:
        return agreement(self._mask(task, name) for task in self.masks)

    def _weight(self, task: str, name: str) -> Tensor:
        theta = self.base[name]
        if name in self.vector:
            return torch.where(self._mask(task, name), _moved(theta, self.vector[name]), theta)
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
            _check_fits(vector, self.base[name], f"the multi-task vector's tensor {name!r}")
            if not vector.is_floating_point():
                raise InputError(f"the multi-task vector's tensor {name!r} is {vector.dtype}, expected a floating type")
            if not _finite(_moved(self.base[name], vector)):
                for what, tensor in (("base", self.base[name]), ("multi-task vector", vector)):
                    if not _finite(tensor):
                        raise InputError(f"the {what}'s tensor {name!r} has values that are not finite")
                raise InputError(f"tensor {name!r}: base + multi-task vector is too large for {self.base[name].dtype}")
        for name in self.base.keys() - self.vector.keys():
            if not _finite(self.base[name]):
                raise InputError(f"the base's tensor {name!r} has values that are not finite")

    def _check_task(self, task: str) -> None:
        _check_same(self.masks[task], self.vector, f"the mask of task {task!r}", "tensor", "the multi-task vector")
        for name, vector in self.vector.items():
            try:
                _check_packed(self.masks[task][name], vector.numel())
            except InputError as error:
                raise InputError(f"task {task!r}, tensor {name!r}: {error}") from error
        for name, own in self.kept[task].items():
            if name not in self.base or name in self.vector:
                raise InputError(f"task {task!r} keeps tensor {name!r}, expected a tensor of the base that is not masked")
            _check_fits(own, self.base[name], f"task {task!r}: the tensor {name!r} that it keeps")
            if own.dtype != self.base[name].dtype:
                raise InputError(f"task {task!r} keeps tensor {name!r} as {own.dtype}, expected {self.base[name].dtype}")
            if not _finite(own):
                raise InputError(f"task {task!r} keeps tensor {name!r} with values that are not finite")


def _moved(theta: Tensor, vector: Tensor) -> Tensor:
    return (theta.to(wide(theta.dtype)) + vector).to(theta.dtype)


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _nbytes(tensors: Weights) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _masked(name: str, theta: Tensor) -> bool:
    """Whether a mask may cover the tensor: a variance that takes some of its coordinates from elsewhere is none."""
    return theta.is_floating_point() and name.rpartition(".")[2] not in ("running_mean", "running_var")


def _like(task: str, expert: Weights, name: str, theta: Tensor) -> Tensor:
    """The expert's tensor in the base's type and on its device, once it is seen to fit."""
    own, what = expert[name].detach(), f"expert {task!r}, tensor {name!r}:"
    _check_fits(own, theta, what)
    if not own.is_floating_point() and own.dtype != theta.dtype:
        raise InputError(f"{what} {own.dtype}, expected {theta.dtype}")
    if not _finite(own):
        raise InputError(f"{what} values that are not finite")
    return own.to(theta)


def _delta(task: str, expert: Weights, name: str, theta: Tensor) -> Tensor:
    """``tau_t``: expert minus base, one tensor."""
    own, what = expert[name].detach(), f"expert {task!r}, tensor {name!r}:"
    _check_fits(own, theta, what)
    # Widened before anything else: an expert in float32 is not first rounded to a base in bfloat16.
    delta = own.to(theta.device, wide(theta.dtype)) - theta.detach()
    if not _finite(delta):
        raise InputError(f"{what} values that are not finite, or are not so less the base")
    return delta


def _multi_task_vector(base: Weights, experts: Mapping[str, Weights], vector: Literal["sum"] | Weights) -> dict[str, Tensor]:
    """The tensors of ``vector``, checked for names and shapes and copied, or the sum of the task vectors."""
    names = [name for name, theta in base.items() if _masked(name, theta)]
    if isinstance(vector, Mapping):
        expected = dict.fromkeys(names)
        _check_same(vector, expected, "the multi-task vector", "tensor", "the base's floating tensors")
        for name in names:
            _check_fits(vector[name], base[name], f"the multi-task vector's tensor {name!r}")
        contiguous = torch.contiguous_format
        given = {name: (vector[name].detach(), base[name].device, wide(base[name].dtype)) for name in names}
        return {n: v.to(device, dtype, copy=True, memory_format=contiguous) for n, (v, device, dtype) in given.items()}
    if vector != "sum":
        raise InputError(f"multi-task vector {vector!r}, expected 'sum' or tensors by name")
    summed = {}
    for name in names:
        total = torch.zeros_like(base[name], dtype=wide(base[name].dtype))
        for task, expert in experts.items():
            total += _delta(task, expert, name, base[name])
        summed[name] = total
    return summed


def _apart(tensors: Weights) -> dict[str, Tensor]:
    """The tensors, contiguous and no two in the same memory, as a safetensors file needs them."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return apart


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


def _check_names(base: Weights, experts: Mapping[str, Weights]) -> None:
    if not experts:
        raise InputError("no experts, expected at least one")
    for task, expert in experts.items():
        _check_same(expert, base, f"expert {task!r}", "tensor", "the base")


def _check_same(found: Mapping[str, Any], expected: Mapping[str, Any], who: str, noun: str, whose: str) -> None:
    for name in expected:
        if name not in found:
            raise InputError(f"{who}: no {noun} {name!r}, which {whose} has")
    for name in found:
        if name not in expected:
            raise InputError(f"{who}: {noun} {name!r} is not in {whose}")


def _check_fits(tensor: Tensor, theta: Tensor, what: str) -> None:
    if tensor.shape != theta.shape:
        raise InputError(f"{what} shape {tuple(tensor.shape)}, expected {tuple(theta.shape)} as in the base")
    if tensor.is_floating_point() != theta.is_floating_point():
        raise InputError(f"{what} {tensor.dtype}, expected {theta.dtype} as in the base")


def _check_packed(packed: Tensor, numel: int) -> None:
    if packed.dtype != torch.uint8 or packed.shape != ((numel + 7) // 8,):
        found = f"{packed.dtype} of shape {tuple(packed.shape)}"
        raise InputError(f"a packed mask is {found}, expected torch.uint8 of shape ({(numel + 7) // 8},) for {numel} values")
    if numel % 8 and int(packed[-1]) & (255 >> numel % 8):
        raise InputError(f"a packed mask has bits behind its {numel} values, expected zeros")


def _check_scale(scale: float, what: str) -> None:
    if not 0 <= scale < math.inf:
        raise InputError(f"{what} {scale}: expected a finite number >= 0")


def _check_k(k: int) -> None:
    if k < 0:
        raise InputError(f"k {k}: expected a number of tasks >= 0")
