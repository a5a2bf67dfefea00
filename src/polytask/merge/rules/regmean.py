"""RegMean: linear layers that give what each model gave on its own inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytask.data.examples import Inputs
from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.measured import Measured
from polytask.merge.engine.rule import Prepared, Rule, Statistic, merge_rules, share
from polytask.merge.engine.source import InMemory
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules._arithmetic import weighted_sum
from polytask.nn.modes import evaluating

ROWS = 256
"""Rows of a weight, or columns of one that is ``(in, out)``, that are solved for at once."""

INPUTS_FIRST = "inputs_first"
"""The note that lists the layers whose weights are ``(in, out)``, as JSON."""


@dataclass(frozen=True)
class Gram:
    """What a linear layer's inputs have in common.

    Attributes:
        matrix: ``X^T X / rows`` of its inputs ``X``, ``(rows, in)``: ``(in, in)``, float64.
        rows: how many inputs it has seen.
        inputs_first: whether the layer's weight is ``(in, out)``, as GPT-2's are in `transformers`, and not ``(out, in)``.
    """

    matrix: Tensor
    rows: int
    inputs_first: bool = False


def gram_matrices(model: nn.Module, batches: Iterable[Inputs]) -> dict[str, Gram]:
    """The Gram matrices of the inputs of every linear layer, `nn.Linear` and the `Conv1D` of `transformers`.

    Args:
        model: it is run in evaluation mode, and is not changed.
        batches: what the model takes, a tensor or named tensors that are passed as keywords.

    Returns:
        By the name of each layer's weight; layers that were not called are left out.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    first: dict[str, bool] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums[name] + seen.T @ seen if name in sums else seen.T @ seen
            rows[name] = rows.get(name, 0) + len(seen)

        return look

    hooks = []
    try:
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                name = f"{path}.weight" if path else "weight"
                first[name] = not isinstance(module, nn.Linear)
                hooks.append(module.register_forward_pre_hook(watch(name)))
        with evaluating(model), torch.no_grad():
            for batch in batches:
                if isinstance(batch, Tensor):
                    model(batch)
                else:
                    model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Gram(total / max(rows[name], 1), rows[name], first[name]) for name, total in sums.items()}


@dataclass(frozen=True)
class Factor:
    """Of the sum of all models' Gram matrices, each with its off-diagonal times ``shrink`` and a little on its diagonal.

    Attributes:
        lower: Cholesky's, ``(in, in)``, float64.
        own: for each model what its Gram matrix times ``shrink`` lacks on the diagonal, ``(K, in)``, float64.
        inputs_first: whether the weight is ``(in, out)``.
    """

    lower: Tensor
    own: Tensor
    inputs_first: bool = False


def factorize(gram: Callable[[int], Tensor], count: int, width: int, shrink: float, inputs_first: bool = False) -> Factor:
    """The `Factor` of ``count`` Gram matrices, ``(width, width)``, which are asked for by their number, one at a time.

    To each a small multiple of the identity is added, so that what no model has seen is averaged.

    Raises:
        InputError: they are not positive semidefinite.
    """
    total, own = torch.zeros(width, width, dtype=torch.float64), torch.empty(count, width, dtype=torch.float64)
    for k in range(count):
        own[k] = _add(total, gram(k), shrink)
    diagonal = total.diagonal().clone()
    size = float(diagonal.sum()) / max(width, 1) or 1.0
    jitter = 1e-10
    while True:
        total.diagonal().copy_(diagonal + count * jitter * size)
        lower, failed = torch.linalg.cholesky_ex(total)
        if not int(failed):
            return Factor(lower, own + jitter * size, inputs_first)
        if jitter > 1:
            raise InputError("the Gram matrices are not positive semidefinite")
        jitter *= 10


def _add(total: Tensor, gram: Tensor, shrink: float) -> Tensor:
    """Add a Gram matrix, its off-diagonal times ``shrink``, to ``total``; what that lacks on the diagonal, ``(in,)``."""
    lacks = gram.diagonal() * (1 - shrink)
    total.add_(gram, alpha=shrink).diagonal().add_(lacks)
    return lacks


def solved(factor: Factor, weights: Sequence[Tensor], gram: Callable[[int], Tensor], shrink: float) -> Tensor:
    """Rows of the merged weight, ``(n, in)``, float64, from each model's, of which Gram matrices are asked for in turn."""
    wanted = torch.zeros(weights[0].shape, dtype=torch.float64)
    for k, weight in enumerate(weights):
        wide = weight.to(torch.float64, copy=True)
        wanted.add_(wide @ gram(k).T, alpha=shrink).add_(wide.mul_(factor.own[k]))
    return torch.cholesky_solve(wanted.T, factor.lower).T


def solve(weights: Sequence[Tensor], grams: Sequence[Tensor], shrink: float) -> Tensor:
    """The linear layer whose outputs are nearest to those of all layers, on the inputs that each has seen.

    ``(sum_k G_k)^-1 sum_k G_k W_k`` by Cholesky's method, in float64, with ``G_k`` off its diagonal times ``shrink``. To
    every ``G_k`` a small multiple of the identity is added, so that what no model has seen is averaged.

    Args:
        weights: ``W``, ``(in, out)`` each.
        grams: ``G``, ``(in, in)`` each.
        shrink: from 0 to 1.

    Returns:
        ``(in, out)``, float64.
    """

    def gram(k: int) -> Tensor:
        return grams[k].double()

    factor = factorize(gram, len(grams), len(weights[0]), shrink)
    return solved(factor, [weight.T for weight in weights], gram, shrink).T


@merge_rules.add("regmean")
@dataclass(frozen=True)
class RegMean(Rule):
    """Linear layers merged so that each gives what its models gave on their own inputs; all else is averaged.

    See `solve`; ``G`` is what `gram_matrices` measured, and no base is needed. Jin, Ren, Preotiuc-Pietro and Cheng,
    *Dataless knowledge fusion by merging weights of language models*, ICLR 2023. Gram matrices are means over inputs, so
    that a model does not count for more because it saw more of them.

    A weight ``(out, in)`` is merged `ROWS` rows at a time: beside them there are three matrices ``(in, in)`` in float64 at
    most, of which one is a model's, however many models and rows there are. Each Gram matrix is read once, and again for
    every `ROWS` rows. A weight ``(in, out)``, as GPT-2's, is in memory as a whole, twice for each model.

    Args:
        shrink: what off-diagonal entries are multiplied by, from 0 to 1.
    """

    shrink: float = 0.9

    vectors = False
    needs_base = False
    needs_measured = True

    def __post_init__(self) -> None:
        share(self.shrink, "shrink")

    def measured_shape(self, name: str, shape: tuple[int, ...], measured: Measured) -> tuple[int, ...]:
        first = _inputs_first(measured, 0, name)
        for k in range(len(measured.sources)):
            if len(shape) != 2 or _inputs_first(measured, k, name) != first:
                raise InputError(f"Gram matrix {name!r} of model {k + 1}: no such matrix in the models")
        return (shape[0 if first else 1],) * 2

    def step(self, name: str, shape: tuple[int, ...], size: int, measured: Measured | None) -> int:
        if measured is None or name not in measured.names:
            return size
        return shape[0] * shape[1] if _inputs_first(measured, 0, name) else ROWS * shape[1]

    def beside(self, name: str, shape: tuple[int, ...], measured: Measured | None) -> int:
        if measured is None or name not in measured.names:
            return 0
        return 3 * 8 * math.prod(self.measured_shape(name, shape, measured))

    def statistics(self, count: int) -> Sequence[Statistic]:
        return (Prepared("factor", self._factor),)

    def _factor(self, measured: Measured, name: str) -> Factor | None:
        if name not in measured.names:
            return None
        width = measured.sources[0].entries[name].shape[0]
        first = _inputs_first(measured, 0, name)
        try:
            return factorize(lambda k: measured.whole(k, name), len(measured.sources), width, self.shrink, first)
        except InputError as error:
            raise InputError(f"tensor {name!r}: {error}") from error

    def merge(self, chunk: Chunk) -> Tensor:
        factor, measured = chunk.found["factor"], chunk.measured
        if factor is None or measured is None:
            return weighted_sum(chunk.rows, [1.0] * len(chunk.rows)).div_(len(chunk.rows))
        rows, out = (room.view(len(room), -1, chunk.width) for room in (chunk.rows, chunk.scratch))
        if factor.inputs_first:
            rows, out = rows.mT, out.mT
        # The same rows together whatever the chunks: a product's last bits depend on how many rows it has.
        for start in range(0, rows.shape[1], ROWS):
            some = rows[:, start : start + ROWS].unbind()
            out[0, start : start + ROWS] = solved(factor, some, lambda k: measured.whole(k, chunk.name), self.shrink)
        return chunk.scratch[0]


def _inputs_first(measured: Measured, k: int, name: str) -> bool:
    """Whether a note beside what was measured of model ``k``, from 0, says that a weight is ``(in, out)``."""
    note = measured.sources[k].metadata.get(INPUTS_FIRST, "[]")
    try:
        names = json.loads(note)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list):
        raise InputError(f"measured of model {k + 1}: note {INPUTS_FIRST} {note[:40]!r}: expected a list of names")
    return name in names


def as_source(grams: Mapping[str, Gram]) -> InMemory:
    """Gram matrices by name as a source, with a note of those whose weights are ``(in, out)``."""
    first = [name for name, gram in grams.items() if gram.inputs_first]
    return InMemory({name: gram.matrix for name, gram in grams.items()}, {INPUTS_FIRST: json.dumps(first)})


def merge_regmean(
    models: Sequence[Mapping[str, Tensor]], grams: Sequence[Mapping[str, Gram]], shrink: float = 0.9
) -> dict[str, Tensor]:
    """Models in memory merged by `RegMean`, in float64.

    Args:
        models: state dicts with the same names and shapes.
        grams: for each model what `gram_matrices` gave. Tensors that are in none of them are averaged.
        shrink: what off-diagonal entries are multiplied by, from 0 to 1.

    Returns:
        A state dict in the precision of the first model. Whole numbers are the first model's.

    Raises:
        InputError: names or shapes differ, or a Gram matrix does not fit its weight or is not finite.
    """
    if len(grams) != len(models):
        raise InputError(f"{len(grams)} sets of Gram matrices, expected one for each of {len(models)} models")
    measured = Measured(map(as_source, grams))
    return merge_state_dicts(RegMean(shrink), models, dtype=torch.float64, measured=measured)
