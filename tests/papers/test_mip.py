"""Magnitude invariant parametrisations: what the paper's package adds (tests/share/hypernetwork has the closed forms)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt
from polytask.errors import InputError
from polytask.model import Losses
from polytask.papers.mip import (
    PAPER,
    PARAMETRISATIONS,
    Continuum,
    ConvEncoder,
    front,
    kaiming,
    over_loss_weights,
    parametrised,
    picture,
    rotated,
)
from polytask.share.hypernetwork import FanOut, HyperNetwork, Values

GAMMAS = torch.linspace(0, 1, 11)[:, None]


def norms(parametrisation: str, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    network = parametrised(kaiming(rotated.Primary()), Values(1), parametrisation, hidden=(16, 64))
    return network.layout.flatten(network.weights(GAMMAS)).norm(dim=1).detach()


def test_the_defaults_weights_are_proportional_to_its_input_and_mips_are_bounded() -> None:
    torch.testing.assert_close(norms("default") / norms("default")[-1], GAMMAS.flatten(), atol=1e-5, rtol=1e-4)
    for seed in range(5):
        encoded, both = norms("encoded", seed), norms("mip", seed)
        # Not equal: the encoding's norm is constant, that of what the layers make of it is not.
        assert 0.3 < float(encoded.min() / encoded.max()) < 0.999
        assert 0.9 < float(both.min() / both.max()) < 1
        assert float(both.std()) < float(encoded.std()) * 10
    assert norms("residual")[0] == kaimings_norm()  # at gamma = 0 it is theta_0


def kaimings_norm() -> Tensor:
    torch.manual_seed(0)
    return torch.cat([p.detach().flatten() for p in kaiming(rotated.Primary()).parameters()]).norm()


def test_the_parametrisations_differ_in_encoding_and_residual_alone() -> None:
    for name, settings in PARAMETRISATIONS.items():
        network = parametrised(nn.Linear(3, 2), Values(2), name)
        assert network.residual is settings["residual"]
        assert network.generator.body.width == (4 if settings["encode"] == "cos_sin" else 2)
        assert [layer.out_features for layer in network.generator.body.layers if isinstance(layer, nn.Linear)] == [16, 128]
        assert all(isinstance(layer, nn.Linear | nn.LeakyReLU) for layer in network.generator.body.layers)
    with pytest.raises(InputError, match="unknown parametrisation 'mipp': did you mean 'mip'"):
        parametrised(nn.Linear(3, 2), Values(2), "mipp")


def test_theta_0_is_the_bias_of_the_last_layer() -> None:
    """``W f + b`` with ``b = theta_0``: the same weights, and the same gradient for both."""
    torch.manual_seed(0)
    network = parametrised(nn.Linear(3, 2), Values(1), hidden=(5,))
    features = network.generator.body(torch.tensor([[[math.cos(0.35), math.sin(0.35)]]]))[0, 0]
    gamma = 0.35 * 2 / math.pi
    last = network.generator.last[0]
    theta = F.linear(features, last.weight, torch.cat([network.target.weight.flatten(), network.target.bias]))
    torch.testing.assert_close(network.layout.flatten(network.weights(gamma))[0], theta)
    x, weight = torch.randn(4, 3), torch.randn(4, 2)
    (network(x, gamma) * weight).sum().backward()
    torch.testing.assert_close(network.target.bias.grad, weight.sum(0))
    torch.testing.assert_close(network.target.weight.grad, weight.T @ x)


def test_from_a_trained_network_it_starts_near_it() -> None:
    torch.manual_seed(0)
    trained = nn.Linear(40, 30)
    before = trained.weight.clone()
    network = parametrised(trained, Values(1), start=FanOut())
    change = network.weights(0.5)["weight"][0] - before
    # A tensor's norm is about the gain times that of the encoding, 1.
    assert float(change.norm()) == pytest.approx(2**0.5, rel=0.5)
    assert torch.equal(network.target.weight, before)


def test_kaimings_start_and_normalisations_that_keep_their_gain() -> None:
    torch.manual_seed(0)
    network = kaiming(nn.Sequential(nn.Conv2d(20, 50, 3), nn.GroupNorm(2, 50)))
    assert float(network[0].weight.std()) == pytest.approx((2 / (1 + 0.01**2) / 180) ** 0.5, rel=0.05)
    assert not network[0].bias.any() and torch.equal(network[1].weight, torch.ones(50)) and not network[1].bias.any()


def test_the_librarys_network_for_mnist() -> None:
    encoder = ConvEncoder()
    counts = [sum(p.numel() for p in layer.parameters()) for layer in encoder if isinstance(layer, nn.Conv2d)]
    assert counts == [416, 4_640, 18_496, 36_928] and sum(counts) == 60_480
    assert encoder(torch.randn(2, 1, 28, 28)).shape == (2, 64)
    with torch.device("meta"):
        network = PAPER.scales[0].build()
    assert sum(p.numel() for p in network.generator.parameters()) + 60_480 == PAPER.scales[0].parameters


# Continua


def test_each_batch_is_seen_at_one_draw_and_all_parameters_are_shared() -> None:
    torch.manual_seed(0)
    network = parametrised(nn.Linear(1, 1), Values(1), hidden=(8,))
    seen: list[float] = []

    def losses(run: object, batch: Tensor, gamma: Tensor) -> dict[str, Tensor]:
        seen.append(float(gamma))
        assert callable(run)
        torch.testing.assert_close(run(batch), network(batch, gamma))
        return {"shift": F.mse_loss(run(batch), batch + gamma)}

    continuum = Continuum(network, losses, lambda: torch.rand(1))
    assert isinstance(continuum, Losses) and set(continuum.shared_parameters()) == set(network.parameters())
    data = torch.utils.data.DataLoader(torch.randn(64, 1), batch_size=16)
    pt.fit(continuum, data, steps=600, lr=1e-2)
    assert len(seen) == len(set(seen)) == 600 and min(seen) < 0.05 and max(seen) > 0.95
    x = torch.randn(20, 1)
    assert max(float(F.mse_loss(network(x, gamma), x + gamma)) for gamma in (0.0, 0.5, 1.0)) < 0.1


def test_loss_weights_are_even_on_the_simplex_and_weigh_the_losses() -> None:
    torch.manual_seed(0)
    tasks = [pt.Task.regression("a"), pt.Task.regression("b"), pt.Task.regression("c")]
    model = pt.Model(nn.Linear(2, 4), tasks, width=4)
    continuum = over_loss_weights(parametrised(model, Values(3), hidden=(8,)))
    draws = torch.stack([continuum.draw() for _ in range(2000)])
    torch.testing.assert_close(draws.sum(1), torch.ones(2000))
    torch.testing.assert_close(draws.mean(0), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    assert float(draws.var(0).mean()) == pytest.approx(1 / 18, rel=0.1)  # of a coordinate of the even distribution
    continuum.draw = lambda: torch.tensor([0.5, 0.2, 0.3])
    x = torch.randn(6, 2)
    found = continuum.losses((x, {"a": x[:, 0], "c": x[:, 1]}))  # b has no label
    outputs = continuum.network(x, [0.5, 0.2, 0.3])
    torch.testing.assert_close(found["a"], 1.5 * F.mse_loss(outputs["a"][:, 0], x[:, 0]))
    torch.testing.assert_close(found["c"], 0.9 * F.mse_loss(outputs["c"][:, 0], x[:, 1]))
    assert list(found) == ["a", "c"]
    with pytest.raises(InputError, match=r"the target is Linear, expected a polytask\.Model"):
        over_loss_weights(parametrised(nn.Linear(2, 2), Values(2)))


# The claims' protocol


def test_images_are_turned_by_90_degrees_at_1() -> None:
    images = torch.rand(3, 1, 14, 14)
    torch.testing.assert_close(rotated.turned(images, 0.0), images)
    quarter = rotated.turned(images, 1.0)
    torch.testing.assert_close(quarter, images.rot90(1, (-2, -1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotated.turned(images, torch.tensor([1.0])), quarter)


def test_a_curve_counts_what_is_no_number_and_what_is_not_reached_as_guessing() -> None:
    network = HyperNetwork(nn.Linear(2, 10), Values(1))
    x, y = torch.randn(50, 2), torch.randint(10, (50,))
    curve = rotated.Curve(network, {"test": [(0.5, x, y)]})
    with torch.no_grad():
        network.target.bias[0] = torch.nan
    curve.note()
    assert curve.points["test"][1] == rotated.GUESSING and all(p <= rotated.GUESSING for p in curve.points["test"])
    first = curve.points["test"][0]
    assert curve.mean("test") == pytest.approx((first + rotated.POINTS * rotated.GUESSING) / (rotated.POINTS + 1))
    assert rotated.padded([1.0]) == [1.0] + [rotated.GUESSING] * rotated.POINTS


@pytest.fixture
def folder() -> Path:
    return folder_with(rotated.FILES)


@pytest.mark.soak
def test_a_seed_measures_what_the_claims_compare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (rotated, "STEPS", 10),
        (rotated, "RATES", {"sgd": (0.01, 50.0), "adam": (3e-3,)}),
        (rotated, "SIZES", {"train": 100, "validation": 50, "test": 60}),
        (front, "STEPS", 4),
        (front, "RATES", (1e-3, 3e-3)),
        (picture, "RATES", {"sgd": (0.01, 50.0)}),
    ):
        monkeypatch.setattr(module, name, value)
    measured = {**rotated.measure(0, folder), **front.measure_front(0, folder)}
    assert all(math.isfinite(value) for value in measured.values())
    for claim in PAPER.claims:
        assert set(claim.pair) <= set(measured)
    assert all(measured[f"{method} failed"] >= 1 for method in rotated.METHODS)  # a rate of 50 ends in no number
    assert measured["mip variation"] < measured["default variation"]
    for method in rotated.METHODS:
        areas = [measured[f"{method} area at {lr}"] for lr in (0.01, 50.0)]
        assert measured[f"{method} any area"] == pytest.approx(sum(areas) / 2)
        assert measured[f"{method} sgd area"] in areas
    figure = picture.plot({0: measured, 1: measured})
    assert len(figure.axes) == 3


def test_methods_start_from_the_same_weights_and_see_the_same_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotated, "STEPS", 10)
    parts = {part: (x[:60], y[:60]) for part, (x, y) in rotated.digits(folder, 0).items()}
    assert parts["test"][0].shape == (60, 1, 14, 14)
    drawn: dict[str, list[float]] = {}
    for method in ("residual", "mip"):
        turned = rotated.turned

        def watched(images: Tensor, gamma: float | Tensor, method: str = method, turned: object = turned) -> Tensor:
            if isinstance(gamma, Tensor):
                drawn.setdefault(method, []).append(float(gamma) + float(images.sum()))
            return turned(images, gamma)  # type: ignore[operator,no-any-return]

        monkeypatch.setattr(rotated, "turned", watched)
        rotated.train(method, "sgd", 0.01, parts, seed=3)
        monkeypatch.setattr(rotated, "turned", turned)
    assert drawn["residual"] == drawn["mip"] and len(drawn["mip"]) == 10
    starts = [rotated.build(method, 3).target.state_dict() for method in ("residual", "mip")]
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())
