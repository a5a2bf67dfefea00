"""RegMean, of models in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytask.data.examples import Inputs
from polytask.errors import InputError
from polytask.merge._models import same_tensors
from polytask.nn.modes import evaluating


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
    total = torch.stack([gram.double() for gram in grams])
    diagonal = torch.diag_embed(total.diagonal(dim1=1, dim2=2))
    shrunk = shrink * total + (1 - shrink) * diagonal
    size = float(diagonal.sum()) / max(total.shape[1], 1) or 1.0
    identity = torch.eye(total.shape[1], dtype=torch.float64)
    jitter = 1e-10
    while True:
        every = shrunk + jitter * size * identity
        factor, failed = torch.linalg.cholesky_ex(every.sum(0))
        if not int(failed):
            break
        if jitter > 1:
            raise InputError("the Gram matrices are not positive semidefinite")
        jitter *= 10
    wanted = sum((g @ w.double() for g, w in zip(every, weights, strict=True)), torch.zeros(weights[0].shape).double())
    return torch.cholesky_solve(wanted, factor)


def merge_regmean(
    models: Sequence[Mapping[str, Tensor]], grams: Sequence[Mapping[str, Gram]], shrink: float = 0.9
) -> dict[str, Tensor]:
    """Linear layers merged so that each gives what its models gave on their own inputs; all else is averaged.

    See `solve`. Jin, Ren, Preotiuc-Pietro and Cheng, *Dataless knowledge fusion by merging weights of language models*,
    ICLR 2023. Gram matrices are means over inputs, so that a model does not count for more because it saw more of them.

    Args:
        models: state dicts with the same names and shapes.
        grams: for each model what `gram_matrices` gave.
        shrink: what off-diagonal entries are multiplied by, from 0 to 1.

    Returns:
        A state dict in the precision of the first model. Whole numbers are the first model's.

    Raises:
        InputError: names or shapes differ, or a Gram matrix does not fit its weight or is not finite.
    """
    if len(grams) != len(models):
        raise InputError(f"{len(grams)} sets of Gram matrices, expected one for each of {len(models)} models")
    if not 0 <= shrink <= 1:
        raise InputError(f"shrink {shrink}: expected a number from 0 to 1")
    if not models:
        raise InputError("no models, expected at least one")
    same_tensors(models, models[0])
    for k, own in enumerate(grams, 1):
        if odd := sorted(own.keys() ^ grams[0].keys()):
            raise InputError(f"Gram matrices of model {k}: {odd[0]!r} is not in every set, expected the same layers in all")
        for name, gram in own.items():
            weight = models[0].get(name)
            if weight is None or weight.ndim != 2 or gram.inputs_first != grams[0][name].inputs_first:
                raise InputError(f"Gram matrix {name!r} of model {k}: no such matrix in the models")
            width = weight.shape[0 if gram.inputs_first else 1]
            if gram.matrix.shape != (width, width) or not bool(gram.matrix.isfinite().all()):
                raise InputError(
                    f"Gram matrix {name!r} of model {k} has shape {list(gram.matrix.shape)}, "
                    f"expected {[width, width]} and finite values"
                )
    merged = {}
    for name, first in models[0].items():
        tensors = [model[name].detach() for model in models]
        if not first.is_floating_point():
            merged[name] = first.detach().clone()
        elif name not in grams[0]:
            merged[name] = (sum((t.double() for t in tensors[1:]), tensors[0].double()) / len(models)).to(first.dtype)
        else:
            turned = not grams[0][name].inputs_first
            found = solve([t.T if turned else t for t in tensors], [own[name].matrix for own in grams], shrink)
            merged[name] = (found.T if turned else found).to(first.dtype).contiguous()
    return merged
