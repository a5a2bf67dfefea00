"""Residual blocks, plain and at a width."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from tests.share.slimmable.networks import images, residual
from torch import nn

from polytask import InputError
from polytask.share.slimmable import Residual, Slimmable


def test_a_block_adds_its_shortcut_and_then_activates() -> None:
    body, short, x = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), images()
    assert torch.equal(Residual(body, short, nn.ReLU())(x), (body(x) + short(x)).relu())
    assert torch.equal(Residual(nn.Tanh())(x), x.tanh() + x)


def test_where_widths_change_an_identity_does_not_fit() -> None:
    first, second = nn.Sequential(nn.Conv2d(2, 32, 1)), Residual(nn.Conv2d(32, 32, 1))
    network = Slimmable(nn.Sequential(first, second, nn.Conv2d(32, 1, 1)))
    assert network(images(), (0.5, 0.5)).shape == (6, 1, 12, 12)
    with pytest.raises(InputError, match=r"\(6, 8, 12, 12\) beside \(6, 16, 12, 12\).*the shortcut needs a layer"):
        network(images(), (0.5, 0.25))


def test_what_is_cut_out_of_a_block_is_a_block() -> None:
    network = Slimmable(residual())
    stage, share = network[0].cut(Fraction(1), 0.25)
    assert share == Fraction(1, 4) and [type(block) for block in stage] == [Residual, Residual]
    assert [name for name, _ in stage.named_parameters()] == [name for name, _ in residual()[0].named_parameters()]
