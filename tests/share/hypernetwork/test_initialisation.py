"""How large predicted weights are at first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytask.share.hypernetwork import (
    MLP,
    Chunks,
    FanOut,
    Heads,
    Hyperfan,
    HyperNetwork,
    Layout,
    LowRank,
    Once,
    Values,
    Zero,
)

GAIN = 2 / (1 + 0.01**2)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.LayerNorm(30), nn.Linear(30, 20))


def entry(name: str) -> Any:
    return next(entry for entry in Layout.of(network()).entries if entry.names == (name,))


def test_hyperfan_in_closed_form() -> None:
    """``Var(H) = 1 / (d_j d_k Var(e))``, twice that for ReLU, half of it beside predicted biases."""
    norm = 64 * 0.25  # d_k Var(e)
    assert Hyperfan(relu=False).variance(entry("0.weight"), norm) / norm == pytest.approx(1 / (40 * 64 * 0.25))
    assert Hyperfan().variance(entry("0.weight"), norm) / norm == pytest.approx(2 / (40 * 64 * 0.25))
    assert Hyperfan(biases=True).variance(entry("3.weight"), norm) == pytest.approx(1 / 30)
    for name, half in (("0.bias", 0.5), ("2.weight", 0.0), ("2.bias", 0.5)):
        assert Hyperfan().variance(entry(name), norm) == 0
        assert Hyperfan(biases=True).variance(entry(name), norm) == half


def test_fan_out_gives_each_tensors_rows_their_own_variance() -> None:
    """Rows of the last layer ~ N(0, gain^2 / n) for a tensor of n numbers, whatever the width before."""
    for name, n in (("0.weight", 1200), ("0.bias", 30), ("3.weight", 600)):
        assert FanOut().variance(entry(name), 7.0) / 7.0 == pytest.approx(GAIN / n)
    torch.manual_seed(0)
    hyper = HyperNetwork(network(), Values(2), MLP((16, 256), "leaky_relu"), start=FanOut())
    last = hyper.generator.last[0]
    assert isinstance(last, nn.Linear) and last.bias is None  # theta_0 is the bias
    rows = torch.split(last.weight, [entry.numel for entry in hyper.layout.entries])
    for entry_, part in zip(hyper.layout.entries, rows, strict=True):
        assert float(part.var()) == pytest.approx(GAIN / entry_.numel, rel=0.1)


@pytest.mark.parametrize("strategy", [Once(), Heads(2), Chunks(1), LowRank(3)], ids=str)
@pytest.mark.parametrize("encode", ["none", "cos_sin", "complement", "unit"])
def test_predicted_weights_begin_with_the_variances_that_are_asked_for(strategy: Any, encode: str) -> None:
    found: dict[str, list[Tensor]] = {}
    for seed in range(40):
        torch.manual_seed(seed)
        target, architecture = network(), MLP((64,), "leaky_relu")
        settings: dict[str, Any] = {"residual": False, "start": Hyperfan(biases=True), "encode": encode}
        hyper = HyperNetwork(target, Values(3), architecture, strategy, **settings)
        with torch.no_grad():
            for name, value in hyper.weights(torch.rand(16, 3)).items():
                found.setdefault(name, []).append((value - float(entry(name).gain)).square().mean())
    for name, values in found.items():
        expected = Hyperfan(biases=True).variance(entry(name), 1.0)
        # The two factors of a low rank come of the same features, and are large together.
        tolerance = 0.45 if isinstance(strategy, LowRank) else 0.25
        assert float(torch.stack(values).mean()) == pytest.approx(expected, rel=tolerance), name


def test_zero_adds_nothing_and_lets_gradients_through() -> None:
    torch.manual_seed(0)
    target = network()
    x = torch.randn(5, 40)
    expected = target(x)
    hyper = HyperNetwork(target, Values(2), start=Zero())
    assert torch.equal(hyper(x, [0.3, 0.9]), expected)
    hyper(x, [0.3, 0.9]).square().sum().backward()
    assert float(hyper.generator.last[0].weight.grad.abs().sum()) > 0
