"""Fisher merging: what each model depends on counts for more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from polytask.data.examples import Inputs
from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.measured import Measured
from polytask.merge.engine.rule import PerModel, Rule, merge_rules, numbers, per_model
from polytask.merge.engine.source import InMemory
from polytask.merge.merging import merge_state_dicts
from polytask.merge.rules._arithmetic import weighted_sum
from polytask.nn.modes import evaluating


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Inputs],
    logits: Callable[[Any], Tensor] = lambda output: output,
    at_once: int = 8,
) -> dict[str, Tensor]:
    """How much the distribution over labels moves with each parameter: the diagonal of the Fisher information matrix.

    ``F = 1/N sum_x sum_y p(y | x) (d log p(y | x) / d theta)^2``, with the expectation over all labels taken exactly, and
    the square of each example's own gradient. No labels are needed.

    Args:
        model: a classifier without randomness; it is put in evaluation mode meanwhile, and is not changed.
        batches: inputs, a tensor or named tensors that the model takes as keywords, examples along the first dimension.
        logits: from what the model gives for a batch to the scores of the classes, ``(N, classes)``.
        at_once: examples whose gradients are in memory together, ``at_once x classes`` times the model's parameters.

    Returns:
        By name of each parameter that requires a gradient, its shape, at least 0, in its precision, float32 at least.

    Raises:
        InputError: there are no examples, or the scores are not ``(N, classes)``.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    rest = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers())

    def log_probabilities(parameters: Mapping[str, Tensor], example: Inputs) -> tuple[Tensor, Tensor]:
        one = _map(example, lambda t: t[None])
        state = {**parameters, **rest}
        output = (
            functional_call(model, state, (one,))
            if isinstance(one, Tensor)
            else functional_call(model, state, (), dict(one))
        )
        scores = logits(output)
        if scores.ndim != 2 or len(scores) != 1:
            raise InputError(f"for one example the scores have shape {list(scores.shape)}, expected (1, classes)")
        found = scores[0].log_softmax(0)
        return found, found

    def of_example(example: Inputs) -> dict[str, Tensor]:
        slopes, found = jacrev(log_probabilities, has_aux=True)(parameters, example)
        chances = found.exp()
        return {name: torch.tensordot(chances, slope.square(), 1) for name, slope in slopes.items()}

    sums = {name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for name, p in parameters.items()}
    examples = 0
    with evaluating(model):
        for batch in batches:
            count = len(batch if isinstance(batch, Tensor) else next(iter(batch.values())))
            for start in range(0, count, at_once):
                piece = _map(batch, lambda t, start=start: t[start : start + at_once])  # type: ignore[misc]
                for name, each in vmap(of_example)(piece).items():
                    sums[name] += each.sum(0)
            examples += count
    if not examples:
        raise InputError("no examples, expected at least one")
    return {name: total / examples for name, total in sums.items()}


@merge_rules.add("fisher")
@dataclass(frozen=True)
class Fisher(Rule):
    """The mean of the models, each parameter of each weighted by how much its own model depends on it.

    ``theta = sum_k w_k F_k theta_k / sum_k w_k F_k``, with what `fisher_diagonal` measured as ``F``; no base is needed.
    Matena and Raffel, *Merging models with Fisher-weighted averaging*, NeurIPS 2022. Theirs keeps the floor from all but the
    model that matters most, if there is one; here all have it. Tensors of which nothing was measured are averaged by ``w``.

    Args:
        weight: ``w``, at least 0, not all 0.
        floor: what every Fisher value is at least, above 0: where nothing depends on a parameter, models are averaged.
        normalize: whether first to divide each model's Fisher values by their length, so that no model counts for more only
            because its gradients are larger. Then they are read twice.
    """

    weight: PerModel = 1.0
    floor: float = 1e-6
    normalize: bool = True

    vectors = False
    needs_base = False
    needs_measured = True

    def __post_init__(self) -> None:
        weights = numbers(self.weight)
        if min(weights, default=-1) < 0 or sum(weights) <= 0:
            raise InputError(f"weights {weights}: expected numbers of at least 0, not all 0")
        if not 0 < self.floor < math.inf:
            raise InputError(f"floor {self.floor:g}: expected a finite number above 0")

    def merge(self, chunk: Chunk) -> Tensor:
        weights = per_model(self.weight, len(chunk.rows), "weight")
        measured, importance = chunk.measured, chunk.scratch
        if measured is None or chunk.name not in measured.names:
            return weighted_sum(chunk.rows, [w / sum(weights) for w in weights])
        smallest = torch.finfo(importance.dtype).tiny
        for k, (row, weight) in enumerate(zip(importance, weights, strict=True)):
            row.copy_(measured.at(k, chunk.name, chunk.start, chunk.start + len(row)))
            low, high = torch.aminmax(row)
            if not (low >= 0 and high < math.inf):
                raise InputError(
                    f"measured of model {k + 1}: tensor {chunk.name!r}: Fisher values that are below 0 or not finite"
                )
            if self.normalize:
                row.div_(max(measured.length(k), smallest))
            row.clamp_(min=self.floor).mul_(weight)
        above = weighted_sum(chunk.rows.mul_(importance), [1.0] * len(weights))
        return above.div_(weighted_sum(importance, [1.0] * len(weights)))


def merge_fisher(
    models: Sequence[Mapping[str, Tensor]],
    fishers: Sequence[Mapping[str, Tensor]],
    weight: PerModel = 1.0,
    floor: float = 1e-6,
    normalize: bool = True,
) -> dict[str, Tensor]:
    """Models in memory merged by `Fisher`, in float64.

    Args:
        models: state dicts with the same names and shapes.
        fishers: for each model what `fisher_diagonal` gave. Tensors that are in none of them are averaged by ``weight``.
        weight: of each model, at least 0, not all 0.
        floor: what every Fisher value is at least, above 0.
        normalize: whether first to divide each model's Fisher values by their length.

    Returns:
        A state dict in the precision of the first model. Whole numbers are the first model's.

    Raises:
        InputError: names or shapes differ, or Fisher values are below 0 or not finite.
    """
    if len(fishers) != len(models):
        raise InputError(f"{len(fishers)} Fisher diagonals, expected one for each of {len(models)} models")
    measured = Measured(map(InMemory, fishers))
    return merge_state_dicts(Fisher(weight, floor, normalize), models, dtype=torch.float64, measured=measured)


def _map(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {name: function(tensor) for name, tensor in inputs.items()}
