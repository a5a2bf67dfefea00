"""Given values and drawn noise as conditions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import polytask as pt
from polytask.errors import InputError
from polytask.share.hypernetwork import Hyperfan, HyperNetwork, Noise, Values


def made(context: Values | Noise, **settings: object) -> HyperNetwork:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return HyperNetwork(target, context, **({"start": Hyperfan()} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_row_of_values_for_each_example(vectorize: bool) -> None:
    hyper, x, gammas = made(Values(2), vectorize=vectorize), torch.randn(5, 4), torch.rand(5, 2)
    each = hyper(x, gammas)
    torch.testing.assert_close(each, torch.stack([hyper.network(g)(row) for g, row in zip(gammas, x, strict=True)]))
    torch.testing.assert_close(hyper(x, gammas[0]), hyper.network(gammas[0])(x))
    torch.testing.assert_close(hyper.each(x, gammas), torch.stack([hyper(x, g) for g in gammas]))


def test_values_come_as_tensors_lists_and_numbers_and_their_shape_is_checked() -> None:
    hyper, x = made(Values(1)), torch.randn(3, 4)
    expected = hyper(x, torch.tensor([[0.5]]))
    for same in (0.5, torch.tensor(0.5), [0.5], torch.tensor([0.5]), torch.tensor([0.5], dtype=torch.float64)):
        torch.testing.assert_close(hyper(x, same), expected)
    torch.testing.assert_close(hyper(x, 1), hyper(x, 1.0))
    with pytest.raises(InputError, match="no condition is given, expected values of shape"):
        hyper(x)
    for wrong in ([0.1, 0.2, 0.3], torch.rand(3, 2), torch.rand(1, 1, 1)):
        with pytest.raises(InputError, match=r"expected \(1,\) or \(N, 1\)"):
            hyper(x, wrong)
    with pytest.raises(InputError, match="2 contexts for 3 examples"):
        hyper(x, torch.rand(2, 1))


def test_noise_is_drawn_anew_and_by_the_seed() -> None:
    hyper, x = made(Noise(5)), torch.randn(3, 4)
    assert not torch.equal(hyper(x), hyper(x))
    torch.manual_seed(1)
    first = hyper.each(x, 20)
    torch.manual_seed(1)
    assert first.shape == (20, 3, 3) and torch.equal(hyper.each(x, 20), first)
    torch.manual_seed(1)
    z = torch.randn(20, 5)
    torch.testing.assert_close(hyper.each(x, z), first)
    assert float(first.std(0).mean()) > 0.1


def test_members_are_an_ensemble_in_a_model() -> None:
    hyper = made(Noise(5, members=4))
    assert hyper(torch.randn(6, 4)).shape == (6, 4, 3)
    model = pt.Model(hyper, [pt.Task.classification("kind", classes=3)], width=3)
    x = torch.randn(60, 4)
    data = pt.Examples(x, {"kind": x[:, :3].argmax(1)})
    fitted = pt.fit(model, data, data, steps=60, batch_size=30, lr=1e-2, evaluate_every=60)
    assert fitted.metrics["kind"]["accuracy"] > 0.8
    probabilities = model.predict(x)["kind"]
    assert probabilities.shape == (60, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(60))
