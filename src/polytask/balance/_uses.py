"""The layers whose weight gradients follow from what they got and what comes back to them: linear, convolution, embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from polytask.balance._parts import Dense, Part, Rows, Scattered


@dataclass(frozen=True)
class Use:
    """One use of a parameter.

    Attributes:
        node: the node of autograd's graph that uses it.
        slot: which of the node's inputs it is.
        parameter: the parameter.
        size: numbers that come back to the node, for one task.
        make: its gradients from what comes back for each of ``m`` tasks, ``(m, *output.shape)``.
    """

    node: Any
    slot: int
    parameter: Tensor
    size: int
    make: Callable[[Tensor, tuple[int, ...]], Part]


def uses(node: Any, wanted: set[int]) -> list[Use]:
    """The uses of parameters, given by ``id``, by ``node`` that a formula here covers."""
    kind = _KINDS.get(node.name())
    if kind is None:
        return []
    found = []
    for slot, (child, _) in enumerate(node.next_functions):
        parameter = None if child is None else leaf(child)
        if parameter is None or id(parameter[0]) not in wanted:
            continue
        make = kind(node, slot, *parameter)
        if make is not None:
            found.append(Use(node, slot, parameter[0], prod(_output_shape(node)), make))
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


def _addmm(node: Any, slot: int, parameter: Tensor, flipped: bool) -> Make | None:
    if slot == 0 and node._saved_beta == 1 and not flipped and parameter.ndim == 1:
        return lambda delta, tasks: Dense(delta.sum(1), tasks)
    if slot == 2 and node._saved_alpha == 1:
        return lambda delta, tasks: Rows(node._saved_mat1, delta, tasks, flip=not flipped)
    return None


def _mm(node: Any, slot: int, parameter: Tensor, flipped: bool) -> Make | None:
    if slot == 1:
        return lambda delta, tasks: Rows(node._saved_self, delta, tasks, flip=not flipped)
    return None


def _convolution(node: Any, slot: int, parameter: Tensor, flipped: bool) -> Make | None:
    if flipped:
        return None
    if slot == 2:
        return lambda delta, tasks: Dense(delta.flatten(3).sum((1, 3)), tasks)
    if slot != 1 or node._saved_groups != 1 or node._saved_transposed:
        return None

    def make(delta: Tensor, tasks: tuple[int, ...]) -> Part:
        x = _windows(node._saved_input, parameter.shape[2:], node)
        # (m, N, out, *L) -> (m, N * L, out)
        return Rows(x, delta.flatten(3).transpose(2, 3).flatten(1, 2), tasks)

    return make


def _embedding(node: Any, slot: int, parameter: Tensor, flipped: bool) -> Make | None:
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


_KINDS: dict[str, Callable[[Any, int, Tensor, bool], Make | None]] = {
    "AddmmBackward0": _addmm,
    "MmBackward0": _mm,
    "ConvolutionBackward0": _convolution,
    "EmbeddingBackward0": _embedding,
}


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
