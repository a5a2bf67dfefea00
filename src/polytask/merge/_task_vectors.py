"""Task vectors of models in memory, tensor by tensor: what fits together, and what is added up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge._models import wide

Weights: TypeAlias = Mapping[str, Tensor]
"""A state dict: tensors by name. It may be lazy: one tensor at a time is asked for."""


def multi_task_vector(base: Weights, experts: Mapping[str, Weights], vector: Literal["sum"] | Weights) -> dict[str, Tensor]:
    """The tensors of ``vector``, checked for names and shapes and copied, or the sum of the task vectors."""
    names = [name for name, theta in base.items() if _masked(name, theta)]
    if isinstance(vector, Mapping):
        expected = dict.fromkeys(names)
        check_same(vector, expected, "the multi-task vector", "tensor", "the base's floating tensors")
        for name in names:
            check_fits(vector[name], base[name], f"the multi-task vector's tensor {name!r}")
        contiguous = torch.contiguous_format
        given = {name: (vector[name].detach(), base[name].device, wide(base[name].dtype)) for name in names}
        return {n: v.to(device, dtype, copy=True, memory_format=contiguous) for n, (v, device, dtype) in given.items()}
    if vector != "sum":
        raise InputError(f"multi-task vector {vector!r}, expected 'sum' or tensors by name")
    summed = {}
    for name in names:
        total = torch.zeros_like(base[name], dtype=wide(base[name].dtype))
        for task, expert in experts.items():
            total += delta_of(task, expert, name, base[name])
        summed[name] = total
    return summed


def delta_of(task: str, expert: Weights, name: str, theta: Tensor) -> Tensor:
    """``tau_t``: expert minus base, one tensor."""
    own, what = expert[name].detach(), f"expert {task!r}, tensor {name!r}:"
    check_fits(own, theta, what)
    # Widened before anything else: an expert in float32 is not first rounded to a base in bfloat16.
    delta = own.to(theta.device, wide(theta.dtype)) - theta.detach()
    if not finite(delta):
        raise InputError(f"{what} values that are not finite, or are not so less the base")
    return delta


def expert_tensor(task: str, expert: Weights, name: str, theta: Tensor) -> Tensor:
    """The expert's tensor in the base's type and on its device, once it is seen to fit."""
    own, what = expert[name].detach(), f"expert {task!r}, tensor {name!r}:"
    check_fits(own, theta, what)
    if not own.is_floating_point() and own.dtype != theta.dtype:
        raise InputError(f"{what} {own.dtype}, expected {theta.dtype}")
    if not finite(own):
        raise InputError(f"{what} values that are not finite")
    return own.to(theta)


def moved(theta: Tensor, vector: Tensor) -> Tensor:
    """``theta + vector``, in the type of ``theta``."""
    return (theta.to(wide(theta.dtype)) + vector).to(theta.dtype)


def finite(tensor: Tensor) -> bool:
    """Whether all values are finite, as integers are."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _masked(name: str, theta: Tensor) -> bool:
    """Whether a mask may cover the tensor: a variance that takes some of its coordinates from elsewhere is none."""
    return theta.is_floating_point() and name.rpartition(".")[2] not in ("running_mean", "running_var")


def check_names(base: Weights, experts: Mapping[str, Weights]) -> None:
    """Raise `InputError` unless there are experts, and all have the base's names."""
    if not experts:
        raise InputError("no experts, expected at least one")
    for task, expert in experts.items():
        check_same(expert, base, f"expert {task!r}", "tensor", "the base")


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], who: str, noun: str, whose: str) -> None:
    """Raise `InputError` unless ``found``, which is ``who``'s, has the names of ``expected``, which are ``whose``."""
    for name in expected:
        if name not in found:
            raise InputError(f"{who}: no {noun} {name!r}, which {whose} has")
    for name in found:
        if name not in expected:
            raise InputError(f"{who}: {noun} {name!r} is not in {whose}")


def check_fits(tensor: Tensor, theta: Tensor, what: str) -> None:
    """Raise `InputError` about ``what`` unless it has the shape of the base's tensor and is floating where that is."""
    if tensor.shape != theta.shape:
        raise InputError(f"{what} shape {tuple(tensor.shape)}, expected {tuple(theta.shape)} as in the base")
    if tensor.is_floating_point() != theta.is_floating_point():
        raise InputError(f"{what} {tensor.dtype}, expected {theta.dtype} as in the base")
