"""Terms of the loss: remembering, and spreading."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import polytask as pt
from polytask.share.hypernetwork import MLP, Chunks, Hyperfan, HyperNetwork, Noise, Remembered, Spread, Tasks, Values

TASKS = ["first", "second", "third"]


def made() -> HyperNetwork:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return HyperNetwork(target, Tasks(TASKS), strategy=Chunks(4), start=Hyperfan())


def test_nothing_has_changed_at_first_and_then_as_much_as_it_says() -> None:
    hyper = made().double()
    term = Remembered(hyper, ["first", "second"], beta=0.5)
    before = hyper.weights(["first", "second"])
    assert float(term(hyper)) == 0
    with torch.no_grad():
        hyper.target[0].bias += 2.0  # theta_0 belongs to what is remembered
    assert float(term(hyper)) == pytest.approx(0.5 * 8 * 4)
    with torch.no_grad():
        hyper.context.embeddings["second"].add_(0.1)
    after = hyper.weights(["first", "second"])
    each = sum((after[name] - value).flatten(1).square().sum(1) for name, value in before.items())
    assert float(term(hyper)) == pytest.approx(0.5 * float(each.mean()))
    assert Remembered(hyper, "third")(hyper) == 0 and Remembered(hyper, "third").beta == 0.01


def test_a_step_is_looked_ahead_by() -> None:
    hyper = made().double()
    term = Remembered(hyper, ["first"])
    step = {name: 0.01 * torch.randn_like(p) for name, p in hyper.named_parameters()}
    ahead = term(hyper, step)
    assert float(ahead) > 0 and float(term(hyper)) == 0
    ahead.backward()
    assert float(hyper.generator.components.grad.abs().sum()) > 0
    with torch.no_grad():
        for name, parameter in hyper.named_parameters():
            parameter += step[name]
    torch.testing.assert_close(term(hyper), ahead)


def test_what_was_learned_first_is_kept_while_the_next_is_learned() -> None:
    torch.manual_seed(0)
    x = torch.randn(128, 4)
    data = {"first": pt.Examples(x, {"first": x[:, 0] * x[:, 1]}), "second": pt.Examples(x, {"second": x[:, 2] - 1})}
    errors = {}
    for beta in (0.0, 10.0):
        model = pt.Model(made(), [pt.Task.regression(name) for name in ("first", "second")], width=1)
        model.heads.requires_grad_(False)
        pt.fit(model, {"first": data["first"]}, epochs=25, lr=1e-2)
        learned = F.mse_loss(model.predict(x, ["first"])["first"].flatten(), data["first"].targets["first"])
        hyper = model.encoder
        assert isinstance(hyper, HyperNetwork)
        hyper.terms.append(Remembered(hyper, ["first"], beta))
        pt.fit(model, {"second": data["second"]}, epochs=25, lr=1e-2)
        for name in data:
            error = F.mse_loss(model.predict(x, [name])[name].flatten(), data[name].targets[name])
            errors[name, beta] = float(error / (learned if name == "first" else 1))
    print(errors)
    assert errors["first", 10.0] < 2 < errors["first", 0.0]
    assert errors["second", 10.0] < 0.2


def test_terms_are_added_to_each_pass_in_training_and_to_none_in_evaluation() -> None:
    hyper = made()
    model = pt.Model(hyper, [pt.Task.regression(name) for name in TASKS[:2]], width=1)
    x = torch.randn(6, 4)
    batch = x, {"first": x[:, 0], "second": x[:, 1]}
    plain = model.losses(batch)
    hyper.terms.append(Remembered(hyper, "third", beta=2.0))
    with torch.no_grad():
        hyper.target[2].bias += 3.0
        hyper.target[2].bias -= 3.0
    torch.testing.assert_close(model.losses(batch), plain)
    with torch.no_grad():
        hyper.context.embeddings["third"].add_(1.0)
    extra = float(hyper.terms[0](hyper))
    assert extra > 0
    for name, loss in model.losses(batch).items():
        assert float(loss) == pytest.approx(float(plain[name]) + extra, rel=1e-4)
    model.eval()
    torch.testing.assert_close(model.losses(batch), plain)


def test_spread_is_the_divergence_of_two_normal_distributions() -> None:
    """A weight ``m + s z``: ``KL(N(m, s^2) || N(0, p^2)) = log(p / s) + (s^2 + m^2) / 2 p^2 - 1 / 2``."""
    hyper = HyperNetwork(nn.Linear(1, 1, bias=False), Noise(1), residual=False, start=Hyperfan())

    hyper.generator.forward = lambda z: 0.3 + 0.2 * z[:, None]  # type: ignore[method-assign]
    torch.manual_seed(0)
    expected = math.log(0.5 / 0.2) + (0.2**2 + 0.3**2) / (2 * 0.5**2) - 0.5
    assert float(Spread(1.0, std=0.5, samples=200_000)(hyper)) == pytest.approx(expected, rel=0.02)
    assert float(Spread(0.1, std=0.5, samples=200_000)(hyper)) == pytest.approx(0.1 * expected, rel=0.02)


def test_without_spread_the_networks_become_one_and_with_it_their_variance_is_what_the_loss_leaves() -> None:
    """A squared error of ``sum_i s_i^2`` beside ``w KL``: ``s^2 = w / (2 + w / p^2)``."""
    torch.manual_seed(0)
    x = torch.randn(2000, 3)
    y = x[:, :1] * 2 - x[:, 1:2]
    found = {}
    for spread in (False, True):
        torch.manual_seed(1)
        hyper = HyperNetwork(nn.Linear(3, 1), Noise(4), MLP((32,)), start=Hyperfan())
        term = Spread(weight=0.3, std=0.5, samples=64)
        optimizer = torch.optim.Adam(hyper.parameters(), lr=2e-2)
        for _ in range(150):
            optimizer.zero_grad()
            loss = (hyper.each(x, 16) - y).square().mean() + (term(hyper) if spread else 0)
            loss.backward()
            optimizer.step()
        found[spread] = float(hyper.layout.flatten(hyper.weights(2000)).var(0).mean())
    print(found)
    assert found[True] == pytest.approx(0.3 / (2 + 0.3 / 0.25), rel=0.2)
    assert found[False] < 0.1 * found[True]


def test_a_term_of_values() -> None:
    hyper = HyperNetwork(nn.Linear(2, 2), Values(1), start=Hyperfan())
    term = Remembered(hyper, torch.tensor([[0.0], [1.0]]), beta=1.0)
    with torch.no_grad():
        hyper.target.bias += 1.0
    assert float(term(hyper)) == pytest.approx(2.0)
