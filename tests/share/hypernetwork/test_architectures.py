"""What the bodies of generators do."""

from __future__ import annotations

import pytest
import torch

from polytask.errors import InputError
from polytask.share.hypernetwork import LSTM, MLP, Attention
from polytask.share.hypernetwork.architectures import Architecture

ARCHITECTURES: list[Architecture] = [MLP((7, 5)), MLP((), "tanh"), LSTM(6), LSTM(6, layers=2), Attention(8, heads=2)]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_shapes_and_names(architecture: Architecture) -> None:
    body = architecture.build(3, "fan_in")
    assert body(torch.randn(2, 4, 3)).shape == (2, 4, body.features) and body.width == 3
    assert body(torch.randn(2, 1, 3)).shape == (2, 1, body.features)


def norms(activation: str) -> list[float]:
    torch.manual_seed(0)
    body = MLP((64, 64), activation).build(1, "fan_in")
    found = body(torch.tensor([[[0.1]], [[0.2]], [[0.5]], [[1.0]]], dtype=torch.float32)).detach().flatten(1).norm(dim=1)
    return [float(f) for f in found / found[-1]]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_piecewise_linear_without_biases_its_output_is_proportional_to_its_input(activation: str) -> None:
    """``h(a gamma) = a h(gamma)``: the proportionality that magnitude invariant parametrisations remove."""
    assert norms(activation) == pytest.approx([0.1, 0.2, 0.5, 1.0], rel=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_other_activations_weaken_that_and_stay_monotone(activation: str) -> None:
    found = norms(activation)
    assert found == sorted(found) and found[0] < 0.5
    assert found != pytest.approx([0.1, 0.2, 0.5, 1.0], rel=0.05)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_fan_in_keeps_the_mean_square_and_fan_out_the_norm(activation: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 1, 32)
    for fan in ("fan_in", "fan_out"):
        found = (
            torch.stack([MLP((64, 256), activation).build(32, fan)(x).square().sum(-1).mean() for _ in range(15)])
            .mean()
            .detach()
        )
        assert float(found) == pytest.approx(MLP((64, 256)).build(32, fan).norm(1.0), rel=0.15)
    assert MLP((64, 256)).build(32, "fan_in").norm(0.5) == 128 and MLP((64, 256)).build(32, "fan_out").norm(0.5) == 16


@pytest.mark.parametrize("architecture", [LSTM(6), Attention(8, heads=2)], ids=str)
def test_normalised_bodies_have_as_large_a_squared_norm_as_features(architecture: Architecture) -> None:
    body = architecture.build(3, "fan_in")
    found = body(torch.randn(5, 4, 3)).square().sum(-1)
    torch.testing.assert_close(found, torch.full((5, 4), body.norm(1.0)), rtol=0.02, atol=0)


def test_components_meet_in_attention_and_in_an_lstm_and_not_in_an_mlp() -> None:
    torch.manual_seed(0)
    x, order = torch.randn(2, 4, 3), torch.tensor([2, 0, 3, 1])
    other = x.clone()
    other[:, 3] += 1
    for architecture, meets, ordered in (
        (MLP(), False, False),
        (Attention(8, heads=2), True, False),
        (LSTM(6), False, True),
    ):
        body = architecture.build(3, "fan_in").eval()
        y = body(x)
        assert torch.allclose(body(other)[:, 0], y[:, 0], atol=1e-6) is not meets
        assert torch.allclose(body(x[:, order]), y[:, order], atol=1e-5) is not ordered
    lstm = LSTM(6).build(3, "fan_in")
    first = x.clone()
    first[:, 0] += 1
    assert not torch.allclose(lstm(first)[:, 3], lstm(x)[:, 3])


def test_dropout_and_errors() -> None:
    body = MLP((50,), dropout=0.5).build(3, "fan_in")
    x = torch.randn(1, 1, 3)
    assert not torch.equal(body(x), body(x)) and torch.equal(body.eval()(x), body(x))
    with pytest.raises(InputError, match="unknown activation 'rellu': did you mean 'relu'"):
        MLP(activation="rellu")
    with pytest.raises(InputError, match=r"hidden \(0,\)"):
        MLP((0,))
    with pytest.raises(InputError, match="hidden 10, expected a multiple of 4 heads"):
        Attention(10)
