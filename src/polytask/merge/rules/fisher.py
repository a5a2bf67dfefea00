"""Fisher merging, of models in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from polytask.data.examples import Inputs
from polytask.errors import InputError
from polytask.merge._models import same_tensors
from polytask.merge.engine.rule import PerModel, per_model
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


def merge_fisher(
    models: Sequence[Mapping[str, Tensor]],
    fishers: Sequence[Mapping[str, Tensor]],
    weight: PerModel = 1.0,
    floor: float = 1e-6,
    normalize: bool = True,
) -> dict[str, Tensor]:
    """The mean of the models, each parameter of each weighted by how much its own model depends on it.

    ``theta = sum_k w_k F_k theta_k / sum_k w_k F_k``. Matena and Raffel, *Merging models with Fisher-weighted averaging*,
    NeurIPS 2022. Theirs keeps the floor from all but the model that matters most, if there is one; here all have it.

    Args:
        models: state dicts with the same names and shapes.
        fishers: for each model what `fisher_diagonal` gave. Tensors that are in none of them are averaged by ``w``.
        weight: ``w``, at least 0, not all 0.
        floor: what every Fisher value is at least, above 0: where nothing depends on a parameter, models are averaged.
        normalize: whether first to divide each model's Fisher values by their length, so that no model counts for more only
            because its gradients are larger.

    Returns:
        A state dict in the precision of the first model; arithmetic is in float64. Whole numbers are the first model's.
    """
    if len(fishers) != len(models):
        raise InputError(f"{len(fishers)} Fisher diagonals, expected one for each of {len(models)} models")
    if not 0 < floor < math.inf:
        raise InputError(f"floor {floor}: expected a finite number above 0")
    weights = per_model(weight, len(models), "weight")
    if not models:
        raise InputError("no models, expected at least one")
    same_tensors(models, models[0])
    if min(weights) < 0 or sum(weights) <= 0:
        raise InputError(f"weights {weights}: expected numbers of at least 0, not all 0")
    for k, fisher in enumerate(fishers, 1):
        for name, values in fisher.items():
            if name not in models[0] or name not in fishers[0] or values.shape != models[0][name].shape:
                raise InputError(
                    f"Fisher diagonal {k}: tensor {name!r} of shape {list(values.shape)} fits none of the models'"
                )
            if not bool((values >= 0).all()) or not bool(values.isfinite().all()):
                raise InputError(f"Fisher diagonal {k}: tensor {name!r} has values that are below 0 or not finite")
        if missing := sorted(fishers[0].keys() - fisher.keys()):
            raise InputError(f"Fisher diagonal {k}: no tensor {missing[0]!r}, which the first one has")
    lengths = [math.sqrt(sum(float(v.double().square().sum()) for v in fisher.values())) for fisher in fishers]
    factors = [1 / length if normalize and length > 0 else 1.0 for length in lengths]

    merged = {}
    for name, first in models[0].items():
        if not first.is_floating_point():
            merged[name] = first.detach().clone()
            continue
        above, below = torch.zeros_like(first, dtype=torch.float64), torch.zeros_like(first, dtype=torch.float64)
        for model, fisher, w, factor in zip(models, fishers, weights, factors, strict=True):
            importance = (
                (fisher[name].double() * factor).clamp_(min=floor) * w if name in fisher else torch.tensor(w).double()
            )
            above += importance * model[name].detach().double()
            below += importance
        merged[name] = (above / below).to(first.dtype)
    return merged


def _map(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {name: function(tensor) for name, tensor in inputs.items()}
