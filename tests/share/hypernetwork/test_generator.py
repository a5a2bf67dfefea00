"""The generator: shapes, heads, and the scale of what it makes at first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from polytask.share.hypernetwork import LSTM, MLP, Attention
from polytask.share.hypernetwork.generator import Generator


def build(
    architecture: Any, n: int = 3, size: int = 8, embedding: int = 0, heads: int = 1, fan: Any = "fan_in"
) -> Generator:
    torch.manual_seed(0)
    return Generator(architecture, 4, (n, size), embedding, heads, fan, bias=True)


@pytest.mark.parametrize("embedding", [0, 5])
@pytest.mark.parametrize("heads", [1, 3])
def test_contexts_become_numbers_for_each_component(embedding: int, heads: int) -> None:
    generator = build(MLP((12,)), size=7, embedding=embedding, heads=heads)
    assert generator(torch.randn(2, 4)).shape == (2, 3, 7)
    assert generator(torch.randn(2, 3, 4)).shape == (2, 3, 7)
    x = torch.randn(2, 4)
    # One vector for all components is that vector for each of them.
    torch.testing.assert_close(generator(x), generator(x[:, None].expand(-1, 3, -1)))
    assert generator(x).allclose(generator(x)[:, :1]) is (embedding == 0)


def test_a_call_for_all_is_the_calls_one_by_one() -> None:
    generator, x = build(MLP((12,)), embedding=5).double(), torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(generator(x), torch.cat([generator(row[None]) for row in x]))
    each = [generator.last[0](generator.body(torch.cat([x, c.expand(6, -1)], 1)[:, None])) for c in generator.components]
    torch.testing.assert_close(generator(x), torch.cat(each, 1))


@pytest.mark.parametrize("fan", ["fan_in", "fan_out"])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("embedding", [0, 6])
@pytest.mark.parametrize("square", [1.0, 0.25])
def test_numbers_start_with_the_variances_that_are_asked_for(fan: Any, heads: int, embedding: int, square: float) -> None:
    wanted = torch.tensor([[0.5] * 300 + [2.0] * 200 + [torch.nan] * 100, [0.5] * 600])
    found = []
    for seed in range(20):
        torch.manual_seed(seed)
        generator = Generator(MLP((64, 64)), 16, (2, 600), embedding, heads, fan, bias=True)
        generator.start(wanted, generator.norm(square))
        found.append(generator(torch.randn(64, 16) * square**0.5).square().mean((0, 1)))
    mean = torch.stack(found).mean(0)
    for rows, expected in ((slice(0, 300), 0.5), (slice(300, 500), 1.25), (slice(500, 600), 0.5)):
        assert float(mean[rows].mean()) == pytest.approx(expected, rel=0.2)


def test_a_spectral_norm_bounds_every_linear_layer() -> None:
    torch.manual_seed(0)
    generator = Generator(MLP((20,), spectral=True), 4, (1, 30), 0, 2, "fan_in", bias=True)
    generator.start(torch.full((1, 30), 100.0), 1.0)
    for _ in range(30):
        generator(torch.randn(2, 4))
    layers = [layer for layer in generator.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 5
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight, 2)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("architecture", [MLP((6,)), LSTM(6), Attention(8, heads=2)], ids=str)
def test_gradients_reach_every_parameter(architecture: Any) -> None:
    generator = build(architecture, embedding=2)
    generator.start(torch.ones(3, 8), generator.norm(1.0))
    generator(torch.randn(2, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.parameters())
