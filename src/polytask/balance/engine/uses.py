"""Layers whose gradients follow from what they got and what comes back to them: linear, convolution, embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.balance.engine.parts import Dense, Part, Rows, Scattered, rows_are_cheaper


@dataclass(frozen=True)
class Use:
    """One use of a parameter.

    Attributes:
        node: the node of autograd's graph that uses it.
        slot: which of the node's inputs it is.
        parameter: the parameter.
        size: numbers that come back to the node, for one task.
        rows: how many outer products make up its gradient.
        one_by_one: whether torch has no way to differentiate it for several tasks at once.
        make: its gradients from what comes back for each of ``m`` tasks, ``(m, *output.shape)``.
    """

    node: Any
    slot: int
    parameter: Tensor
    size: int
    rows: int
    one_by_one: bool
    make: Callable[[Tensor, tuple[int, ...]], Part]


def uses(node: Any, wanted: set[int], count: int) -> list[Use]:
    """The uses of parameters, given by ``id``, by ``node`` that a formula here covers, for ``count`` tasks."""
    kind = _KINDS.get(node.name())
    if kind is None:
        return []
    found = []
    for slot, (child, _) in enumerate(node.next_functions):
        parameter = None if child is None else leaf(child)
        if parameter is None or id(parameter[0]) not in wanted:
            continue
        make = kind(node, slot, *parameter, count)
        if make is not None:
            shape = _output_shape(node)
            one_by_one = kind is _convolution
            rows = prod(shape) // (shape[1] if one_by_one else shape[-1])
            found.append(Use(node, slot, parameter[0], prod(shape), rows, one_by_one, make))
    return found


def leaf(node: Any) -> tuple[Tensor, bool] | None:
    """The leaf that ``node`` only transposes or casts, and whether it comes out transposed; ``None`` when it does more."""
    flipped = False
    while not hasattr(node, "variable"):
        if node.name() == "TBackward0":
            flipped = not flipped
        elif node.name() != "ToCopyBackward0":
            return None
        node = node.next_functions[0][0]
        if node is None:
            return None
    return node.variable, flipped


Make = Callable[[Tensor, tuple[int, ...]], Part]


def _addmm(node: Any, slot: int, parameter: Tensor, flipped: bool, count: int) -> Make | None:
    if slot == 0 and node._saved_beta == 1 and not flipped and parameter.ndim == 1:
        return lambda delta, tasks: Dense(delta.sum(1), tasks)
    if slot == 2 and node._saved_alpha == 1:
        return lambda delta, tasks: Rows(node._saved_mat1, delta, tasks, flip=not flipped)
    return None


def _mm(node: Any, slot: int, parameter: Tensor, flipped: bool, count: int) -> Make | None:
    if slot == 1:
        return lambda delta, tasks: Rows(node._saved_self, delta, tasks, flip=not flipped)
    return None


def _convolution(node: Any, slot: int, parameter: Tensor, flipped: bool, count: int) -> Make | None:
    if flipped:
        return None
    if slot == 2:
        return lambda delta, tasks: Dense(delta.flatten(3).sum((1, 3)), tasks)
    shape = _output_shape(node)
    rows, plain = shape[0] * prod(shape[2:]), node._saved_groups == 1 and not node._saved_transposed
    if plain and rows_are_cheaper(rows, parameter[0].numel(), len(parameter), count):
        windows = cache(lambda: _windows(node._saved_input, parameter.shape[2:], node))
        # (m, N, out, *positions) -> (m, N * positions, out)
        return lambda delta, tasks: Rows(windows(), delta.flatten(3).transpose(2, 3).flatten(1, 2), tasks)

    def make(delta: Tensor, tasks: tuple[int, ...]) -> Part:
        return Dense(torch.stack([_weight_gradient(grad, node) for grad in delta]), tasks)

    return make


def _embedding(node: Any, slot: int, parameter: Tensor, flipped: bool, count: int) -> Make | None:
    if flipped or node._saved_scale_grad_by_freq or node._saved_sparse:
        return None

    def make(delta: Tensor, tasks: tuple[int, ...]) -> Part:
        ids = node._saved_indices.flatten()
        delta = delta.reshape(len(delta), len(ids), -1)
        padding = _signed(node._saved_padding_idx)
        if padding >= 0:
            keep = ids != padding
            ids, delta = ids[keep], delta[:, keep]
        rows, place = ids.unique(return_inverse=True)
        grads = delta.new_zeros(len(delta), len(rows), delta.shape[2]).index_add_(1, place, delta)
        return Scattered(rows, grads, tasks, len(parameter))

    return make


_KINDS: dict[str, Callable[[Any, int, Tensor, bool, int], Make | None]] = {
    "AddmmBackward0": _addmm,
    "MmBackward0": _mm,
    "ConvolutionBackward0": _convolution,
    "EmbeddingBackward0": _embedding,
}


def _weight_gradient(grad: Tensor, node: Any) -> Tensor:
    x, weight = node._saved_input, node._saved_weight
    settings = [node._saved_stride, node._saved_padding, node._saved_dilation, node._saved_transposed]
    settings += [node._saved_output_padding, node._saved_groups]
    found: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, [False, True, False])[1]
    return found


def _windows(x: Tensor, kernel: tuple[int, ...], node: Any) -> Tensor:
    """What each output position of a convolution sees of its input, ``(N * positions, in * kernel)``."""
    dims = len(kernel)
    padding = [p for side in reversed(node._saved_padding) for p in (side, side)]
    x = F.pad(x, padding) if any(padding) else x
    for i, (size, stride, gap) in enumerate(zip(kernel, node._saved_stride, node._saved_dilation, strict=True)):
        x = x.unfold(2 + i, gap * (size - 1) + 1, stride)[..., ::gap]
    # (N, in, *positions, *kernel) -> (N, *positions, in, *kernel)
    order = (0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
    return x.permute(order).reshape(-1, x.shape[1] * prod(kernel))


def _output_shape(node: Any) -> tuple[int, ...]:
    return tuple(node._input_metadata[0].shape)


def _signed(value: int) -> int:
    """An index that autograd hands out as unsigned: "none", -1, comes out as 2^64 - 1."""
    return value - 2**64 if value >= 2**63 else value
