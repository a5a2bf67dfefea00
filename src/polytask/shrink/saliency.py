"""Masks by what weights do to a loss or to a network's flow, rather than by their magnitude; and random ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from polytask.errors import InputError
from polytask.nn.modes import evaluating
from polytask.shrink.masks import Masks, Scope, maskable, masks_by_score

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""From a network and a batch to a scalar."""


def random_masks(network: nn.Module, sparsity: float, scope: Scope = "global") -> Masks:
    """Masks that leave out weights at random, by torch's random numbers; arguments as for `magnitude_masks`."""
    return masks_by_score({name: torch.rand(weight.shape) for name, weight in maskable(network).items()}, sparsity, scope)


def shuffled(masks: Masks) -> Masks:
    """Random masks that keep as many weights of each parameter as ``masks`` do, by torch's random numbers."""
    return Masks({name: mask.flatten()[torch.randperm(mask.numel())].view_as(mask) for name, mask in masks.keep.items()})


def snip_masks(network: nn.Module, loss: Loss, batches: Iterable[Any], sparsity: float, scope: Scope = "global") -> Masks:
    """Masks that leave out the weights on which the loss depends least, ``|w dL/dw|`` (Lee et al., *SNIP*, ICLR 2019).

    Args:
        network: in evaluation mode meanwhile; weights that need no gradient are whole.
        loss: its gradients over the batches are added up.
        batches: as ``loss`` takes them.
        sparsity, scope: as for `magnitude_masks`.
    """
    weights = _trained(network)
    with evaluating(network):
        g = _summed(_gradient(network, loss, batch, weights) for batch in batches)
    return masks_by_score({name: (w * d).abs() for (name, w), d in zip(weights.items(), g, strict=True)}, sparsity, scope)


def grasp_masks(network: nn.Module, loss: Loss, batches: Iterable[Any], sparsity: float, scope: Scope = "global") -> Masks:
    """Masks that leave out the weights without which the gradient's norm grows most, those of the least ``w (H g)``, with
    ``g`` the gradient and ``H`` the Hessian (Wang et al., *GraSP*, ICLR 2020, Equation 8).

    Args:
        network, sparsity, scope: as for `snip_masks`.
        loss: twice differentiable; the authors divide logits by 200 first.
        batches: read twice, so a list.
    """
    weights, batches = _trained(network), list(batches)
    with evaluating(network):
        g = _summed(_gradient(network, loss, batch, weights) for batch in batches)
        hg = _summed(_gradient(network, loss, batch, weights, along=g) for batch in batches)
    return masks_by_score({name: w * h for (name, w), h in zip(weights.items(), hg, strict=True)}, sparsity, scope)


def synflow_masks(network: nn.Module, *inputs: Any, sparsity: float, scope: Scope = "global", rounds: int = 100) -> Masks:
    """Masks that leave out the weights through which least flows, ``|w dR/dw|`` with ``R`` the sum of the outputs for inputs
    of ones, all parameters and statistics replaced by their magnitudes (Tanaka et al., *SynFlow*, NeurIPS 2020).

    Args:
        network: is not changed; a copy runs in double precision and evaluation mode.
        inputs: an example, whose shapes count; integers are taken as they are.
        sparsity, scope: as for `magnitude_masks`.
        rounds: of pruning, whose densities fall in geometric progression; with 1 whole layers can vanish.
    """
    twin = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point():
                tensor.abs_()
    ones = tree_map(lambda x: _ones(x) if isinstance(x, Tensor) else x, inputs)
    weights, masks = _trained(twin), Masks({})
    for number in range(1, rounds + 1):
        with masks.effective(twin):
            flow = torch.stack([x.sum() for x in tree_leaves(twin(*ones)) if isinstance(x, Tensor)]).sum()
            gradients = torch.autograd.grad(flow, list(weights.values()), materialize_grads=True)
        scores = {name: (w * g).abs() for (name, w), g in zip(weights.items(), gradients, strict=True)}
        # What is out stays out, also where nothing flows any more.
        masks = masks_by_score(scores, 1 - (1 - sparsity) ** (number / rounds), scope, within=masks)
    return masks


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    weights = {name: weight for name, weight in maskable(network).items() if weight.requires_grad}
    if not weights:
        raise InputError(f"{type(network).__name__}: no weights that need a gradient, expected some to mask")
    return weights


def _gradient(
    network: nn.Module, loss: Loss, batch: Any, weights: dict[str, nn.Parameter], along: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """The gradient of the loss, or its Hessian times a vector."""
    own = list(weights.values())
    found = torch.autograd.grad(loss(network, batch), own, create_graph=along is not None, materialize_grads=True)
    if along is None:
        return found
    inner = torch.stack([(a * b).sum() for a, b in zip(found, along, strict=True)]).sum()
    return torch.autograd.grad(inner, own, materialize_grads=True)


def _summed(gradients: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Batch after batch, so that no more than two batches' gradients are held."""
    return list(reduce(lambda total, each: [a + b for a, b in zip(total, each, strict=True)], gradients))


def _ones(x: Tensor) -> Tensor:
    return torch.ones_like(x[:1], dtype=torch.float64) if x.is_floating_point() else x
