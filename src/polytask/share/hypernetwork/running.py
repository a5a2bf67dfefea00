"""Running one network with several sets of weights: on parts of a batch, on single examples, or on all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import vmap

from polytask.errors import InputError

Weights: TypeAlias = Mapping[str, Tensor]
Run: TypeAlias = Callable[[Weights, Any], Any]
"""Runs the network with weights ``(*shape)`` on inputs ``(N, ...)``, a tensor or named tensors."""


def by_index(run: Run, weights: Weights, inputs: Any, index: Tensor) -> Tensor:
    """Example ``i`` by the weights at ``index[i]``: a pass for each set of weights that occurs, with its own examples."""
    order = index.argsort(stable=True)
    groups = enumerate(torch.split(order, index.bincount(minlength=_count(weights)).tolist()))
    outputs = [run(one(weights, i), _rows(inputs, rows)) for i, rows in groups if len(rows)]
    return torch.cat(outputs)[order.argsort()]


def for_each_example(run: Run, weights: Weights, inputs: Any, vectorize: bool) -> Tensor:
    """Example ``i`` by the weights ``i``."""
    count, examples = _count(weights), len(some_tensor(inputs))
    if count != examples:
        raise InputError(f"{count} contexts for {examples} examples, expected one, or one for each example")
    if vectorize:
        alone = inputs[:, None] if isinstance(inputs, Tensor) else {name: x[:, None] for name, x in inputs.items()}
        output: Tensor = vmap(run, in_dims=(0, 0), randomness="different")(weights, alone)
        return output.squeeze(1)
    return torch.cat([run(one(weights, i), _rows(inputs, slice(i, i + 1))) for i in range(count)])


def for_each_context(run: Run, weights: Weights, inputs: Any, vectorize: bool) -> Tensor:
    """All examples by each of ``C`` sets of weights, ``(C, N, ...)``."""
    if vectorize:
        output: Tensor = vmap(run, in_dims=(0, None), randomness="different")(weights, inputs)
        return output
    return torch.stack([run(one(weights, i), inputs) for i in range(_count(weights))])


def one(weights: Weights, i: int = 0) -> dict[str, Tensor]:
    """The set of weights number ``i``."""
    return {name: value[i] for name, value in weights.items()}


def some_tensor(inputs: Any) -> Tensor:
    """The inputs, or the first of them where they have names: its first dimension is that of the batch."""
    tensor: Tensor = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return tensor


def _count(weights: Weights) -> int:
    return len(next(iter(weights.values())))


def _rows(inputs: Any, rows: Any) -> Any:
    return inputs[rows] if isinstance(inputs, Tensor) else {name: x[rows] for name, x in inputs.items()}
