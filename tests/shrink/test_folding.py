"""What dead channels add everywhere alike stays in what follows them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from polytask.shrink import find_structure, fold, magnitude_masks, remove
from polytask.shrink.masks import Masks


def network(padding: int = 0, bias: bool = False, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.Conv2d(6, 4, 1 + 2 * padding, padding=padding, bias=bias)]
    layers += [nn.BatchNorm2d(4)] if norm else []
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    with torch.no_grad():
        for tensor in (*model[1].buffers(), *(model[4].buffers() if norm else ()), model[1].bias, model[1].weight):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
        model[1].weight[[0, 3]] = 0
    return model.eval()


X = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_without_bias_dead_channels_give_nothing_and_with_it_they_leak() -> None:
    for beta, leaks in ((0.0, False), (0.7, True)):
        model = network()
        model[1].bias.data[[0, 3]] = beta
        structure, expected = find_structure(model, X[:1]), model(X)
        small = remove(model, structure, {"0": [0, 3]})
        assert torch.allclose(small(X), expected, atol=1e-5) is not leaks


@pytest.mark.parametrize(("bias", "norm"), [(False, True), (True, True), (True, False)])
def test_folded_the_smaller_network_gives_the_same(bias: bool, norm: bool) -> None:
    model = network(bias=bias, norm=norm)
    structure, expected = find_structure(model, X[:1]), model(X)
    fold(model, structure, {"0": [0, 3]}, X[:1])
    small = remove(model, structure, {"0": [0, 3]})
    torch.testing.assert_close(small(X), expected)
    if norm:
        before = network(bias=bias).train()
        torch.testing.assert_close(small.train()(X), before(X))  # batch statistics take constants off anyway


def test_the_mean_is_the_reading_weights_times_the_constants() -> None:
    model = network()
    before = model[4].running_mean.clone()
    fold(model, find_structure(model, X[:1]), {"0": [0, 3]}, X[:1])
    constants = model[3].weight[:, [0, 3], 0, 0] @ model[1].bias[[0, 3]].relu()
    torch.testing.assert_close(model[4].running_mean, before - constants)


def test_padding_leaves_a_difference_at_the_border_whose_mean_is_folded() -> None:
    model = network(padding=1)
    structure, expected = find_structure(model, X[:1]), model[:5](X)
    fold(model, structure, {"0": [0, 3]}, X[:1])
    rest = remove(model, structure, {"0": [0, 3]})[:5](X) - expected
    assert rest.abs().max() > 1e-2
    torch.testing.assert_close(rest.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)


def test_masks_count() -> None:
    model = network()
    masks = magnitude_masks(model, 0.5)
    with masks.effective(model):
        expected = model(X)
    structure = find_structure(model, X[:1])
    stored = copy.deepcopy(dict(model.named_parameters()))
    fold(model, structure, {"0": [0, 3]}, X[:1], masks=masks)
    assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters())
    small, left = remove(model, structure, {"0": [0, 3]}), masks.without(structure, {"0": [0, 3]})
    with left.effective(small):
        torch.testing.assert_close(small(X), expected)
    assert isinstance(left, Masks) and left.keep["3.weight"].shape == (4, 4, 1, 1)
