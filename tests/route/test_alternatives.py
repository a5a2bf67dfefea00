"""Alternatives: draws, mixtures, choices and budgets."""

import threading

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.route import Alternatives, alternatives_of, budget_loss, choosing, watched_choices


def layer(router: bool = True) -> Alternatives:
    torch.manual_seed(0)
    modules = {"big": nn.Linear(4, 4), "small": nn.Linear(4, 4), "skip": None}
    return Alternatives(modules, nn.Linear(4, 3) if router else None)


def each(made: Alternatives, x: Tensor) -> list[Tensor]:
    return [torch.zeros_like(x) if (module := made.of(name)) is None else module(x) for name in made.names]


def test_a_router_mixes_in_training_and_chooses_in_evaluation() -> None:
    made, x = layer(), torch.randn(2, 5, 4)
    assert made.router is not None
    outputs = each(made, x)
    made.sharpness = 3.0
    chances = (3 * made.router(x)).softmax(-1)
    torch.testing.assert_close(made(x), sum(chances[..., k : k + 1] * y for k, y in enumerate(outputs)))
    chosen = chances.argmax(-1)
    expected = torch.stack(outputs).gather(0, chosen[None, :, :, None].expand(1, 2, 5, 4))[0]
    torch.testing.assert_close(made.eval()(x), expected)
    made.train().sharpness = 1e5
    torch.testing.assert_close(made(x), expected)  # hardened, the mixture is the choice


def test_random_draws_are_even_per_token() -> None:
    made = Alternatives({"one": nn.Identity(), "skip": None})
    torch.manual_seed(0)
    drawn = made(torch.ones(50, 40, 1))[..., 0]
    assert 0.45 < drawn.mean() < 0.55 and (drawn.std(1) > 0).all()


def test_given_choices_nest_and_hold_for_their_thread() -> None:
    made, x = layer(), torch.randn(2, 5, 4)
    big, small, skip = each(made, x)
    found: list[Tensor] = []
    with choosing(made, [0]):
        torch.testing.assert_close(made(x), big)
        with choosing(made, [torch.tensor([0, 1, 2, 1, 0])]):
            expected = torch.stack([big[:, 0], small[:, 1], skip[:, 2], small[:, 3], big[:, 4]], 1)
            torch.testing.assert_close(made(x), expected)
        torch.testing.assert_close(made(x), big)
        thread = threading.Thread(target=lambda: found.append(made(x)))
        thread.start()
        thread.join()
    assert not torch.allclose(found[0], big)
    network = nn.Sequential(layer(), layer(False))
    assert len(alternatives_of(network)) == 2
    with pytest.raises(InputError, match="a pattern of 1 choices for 2 alternatives"), choosing(network, [0]):
        pass


def test_one_dimension_skips_whole_examples() -> None:
    torch.manual_seed(0)
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2, bias=False))
    block = Alternatives({"run": nn.Conv2d(3, 3, 3, padding=1), "skip": None}, gate, dims=1)
    x = torch.randn(6, 3, 8, 8)
    assert block(x).shape == x.shape
    skipped = gate(x).argmax(1) == 1
    assert 0 < skipped.sum() < 6
    assert torch.equal(block.eval()(x).flatten(1).any(1), ~skipped)


def test_the_budget_is_0_where_it_is_kept_and_its_gradient_is_the_same_for_all_layers() -> None:
    torch.manual_seed(0)
    chances = [torch.rand(3, 5, 2).softmax(-1).requires_grad_(True) for _ in range(4)]
    loss = budget_loss(chances, {0: 0.3})
    loss.backward()
    mean = torch.stack([c[..., 0] for c in chances]).mean(0)
    torch.testing.assert_close(loss, (mean - 0.3).square().mean())
    for c in chances:
        assert c.grad is not None
        torch.testing.assert_close(c.grad[..., 0], 2 * (mean - 0.3) / 4 / 15)
        assert not c.grad[..., 1].any()
    kept = [torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])]
    assert budget_loss(kept, {0: 0.5, 1: 0.5, 2: 0.0}) == 0 < budget_loss(kept, {0: 0.5, 1: 0.4})


def test_watched_choices_have_gradients() -> None:
    made, x = layer(), torch.randn(2, 5, 4)
    with watched_choices() as chances:
        made(x)
        made(x)
    made(x)
    assert len(chances) == 2
    budget_loss(chances, {0: 0.0}).backward()
    assert made.router is not None and made.router.weight.grad.any()  # type: ignore[union-attr]
    assert made.choices["big"].weight.grad is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'small'"):
        layer().of("smal")
    with pytest.raises(InputError, match="at least one module"):
        Alternatives({"skip": None})
    with pytest.raises(InputError, match=r"a router of \(2, 5, 3\), expected \(2, 5, 2\)"):
        Alternatives({"a": nn.Identity(), "skip": None}, nn.Linear(4, 3))(torch.randn(2, 5, 4))
    made = layer(router=False)
    made.policy = "router"
    with pytest.raises(InputError, match="there is no router"):
        made(torch.randn(2, 5, 4))
    for chances, budget in (
        ([], {0: 0.5}),
        ([torch.rand(2, 2)], {}),
        ([torch.rand(2, 2)], {2: 0.5}),
        ([torch.rand(2, 2)], {0: 1.5}),
    ):
        with pytest.raises(InputError, match="budget"):
            budget_loss(chances, budget)
