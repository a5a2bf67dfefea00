"""Layers: the first channels, and how many."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polytask.share.slimmable import SlimmableConv2d, SlimmableLinear, narrowed


@given(st.integers(1, 300), st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.sampled_from([1, 8, 12]))
def test_channels_are_the_least_multiple_of_what_is_asked_for(channels: int, a: float, b: float, multiple: int) -> None:
    found = narrowed(channels, a, multiple)
    assert found == channels or (found % multiple == 0 and found - multiple < a * channels <= found + 1e-6)
    assert 1 <= found <= channels == narrowed(channels, 1.0, multiple)
    assert narrowed(channels, min(a, b), multiple) <= narrowed(channels, max(a, b), multiple)


def test_products_of_floats_are_not_rounded_up_twice() -> None:
    assert 0.56 * 100 > 56 and narrowed(100, 0.56) == 56  # 56.00000000000001
    assert 0.28 * 200 > 56 and narrowed(200, 0.28) == 56


@pytest.mark.parametrize("inputs", [3, 8, 24])
def test_a_convolution_takes_what_comes_and_gives_its_first_channels(inputs: int) -> None:
    layer = SlimmableConv2d(24, 32, 3, stride=2, padding=1, dilation=2)
    x = torch.randn(2, inputs, 9, 9)
    expected = F.conv2d(x, layer.weight[:16, :inputs], layer.bias[:16], 2, 1, 2)  # type: ignore[index]
    assert torch.equal(layer(x, 0.5), expected)
    plain, share = layer.cut(Fraction(inputs, 24), 0.5)
    assert type(plain) is nn.Conv2d and share == Fraction(1, 2)
    assert plain.in_channels == inputs and plain.out_channels == 16
    torch.testing.assert_close(plain(x), expected)


def test_a_linear_layer_that_is_fixed_gives_everything() -> None:
    layer = SlimmableLinear(16, 20, bias=False)
    x = torch.randn(2, 5, 8)
    assert layer(x, 0.25).shape == (2, 5, 8)
    layer.fixed = True
    assert torch.equal(layer(x, 0.25), x @ layer.weight[:, :8].T)
    plain, share = layer.cut(Fraction(1, 2), 0.25)
    assert share == 1 and plain.bias is None and torch.equal(plain.weight, layer.weight[:, :8])


def test_what_is_cut_out_is_a_copy_and_draws_nothing() -> None:
    layer, state = SlimmableConv2d(16, 16, 1), torch.get_rng_state()
    plain, _ = layer.cut(Fraction(1), 1.0)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(plain.weight, layer.weight)
    with torch.no_grad():
        plain.weight.zero_()
    assert bool(layer.weight.any()) and plain.weight.requires_grad and plain.weight.is_contiguous()
