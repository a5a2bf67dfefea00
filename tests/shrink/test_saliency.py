"""Masks by saliency, against closed forms and derivatives taken another way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.errors import InputError
from polytask.shrink import Masks, grasp_masks, magnitude_masks, random_masks, shuffled, snip_masks, synflow_masks


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def loss(network: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(network(x), y)


BATCHES = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(2)]


def kept(masks: Masks, scores: dict[str, Tensor]) -> bool:
    """Whether what is kept has the larger scores."""
    inside = torch.cat([scores[name][mask] for name, mask in masks.keep.items()])
    outside = torch.cat([scores[name][~mask] for name, mask in masks.keep.items()])
    return bool(inside.min() >= outside.max())


def test_snip_is_the_derivative_by_a_mask_of_ones() -> None:
    model = network()
    ones = {name: torch.ones_like(p, requires_grad=True) for name, p in model.named_parameters() if p.ndim > 1}
    weights = {name: p.detach() for name, p in model.named_parameters()}
    for x, y in BATCHES:
        masked = {name: w * ones[name] if name in ones else w for name, w in weights.items()}
        F.cross_entropy(torch.func.functional_call(model, masked, x), y).backward()
    masks = snip_masks(model, loss, BATCHES, 0.5)
    assert masks.sparsity == pytest.approx(0.5) and kept(masks, {name: one.grad.abs() for name, one in ones.items()})  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.parameters())


def test_grasp_is_a_finite_difference_of_gradients() -> None:
    model = network().double()
    batches = [(x.double(), y) for x, y in BATCHES]

    def gradient(model: nn.Module) -> dict[str, Tensor]:
        model.zero_grad()
        for batch in batches:
            loss(model, batch).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.ndim > 1}  # type: ignore[union-attr]

    g, moved, step = gradient(copy.deepcopy(model)), copy.deepcopy(model), 1e-5
    with torch.no_grad():
        for name, p in moved.named_parameters():
            if name in g:
                p += step * g[name]
    later = gradient(moved)
    scores = {name: dict(model.named_parameters())[name].detach() * (later[name] - g[name]) / step for name in g}
    assert kept(grasp_masks(model, loss, batches, 0.4), {name: s.round(decimals=6) for name, s in scores.items()})


def test_synflow_of_a_linear_chain_is_the_sum_over_paths() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    before = copy.deepcopy(model.state_dict())
    a, b = (model[i].weight.detach().double().abs() for i in (0, 2))
    scores = {"0.weight": a * b.sum(0)[:, None], "2.weight": b * a.sum(1)}
    masks = synflow_masks(model, torch.randn(5, 3), sparsity=0.5, rounds=1)
    assert kept(masks, scores) and masks.sparsity == pytest.approx(0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    narrow = synflow_masks(model, torch.randn(5, 3), sparsity=0.85)
    assert narrow.sparsity == pytest.approx(0.85) and all(mask.any() for mask in narrow.keep.values())  # no layer vanishes
    with narrow.effective(model):
        assert (model(torch.ones(1, 3).abs()) != 0).any() or model[2].weight.lt(0).any()


def test_random_and_shuffled() -> None:
    model = network()
    torch.manual_seed(1)
    a, b = random_masks(model, 0.3), random_masks(model, 0.3)
    assert a.sparsity == pytest.approx(0.3, abs=0.02) and any((a.keep[name] != b.keep[name]).any() for name in a.keep)
    masks = magnitude_masks(model, 0.6)
    other = shuffled(masks)
    assert all(int(mask.sum()) == int(other.keep[name].sum()) for name, mask in masks.keep.items())
    assert any((mask != other.keep[name]).any() for name, mask in masks.keep.items())


def test_a_frozen_network_is_refused() -> None:
    with pytest.raises(InputError, match="no weights that need a gradient"):
        snip_masks(network().requires_grad_(False), loss, BATCHES, 0.5)
