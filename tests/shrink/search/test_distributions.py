"""The distributions of tasks: probabilities, gradients, samples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.shrink.search import Distributions, Space
from polytask.shrink.search.distributions import mixture

SPACE = Space(
    {"depth": [1, 2], "kernel1": [3, 5, 7], "kernel2": [3, 5, 7], "wide": [False, True]}, when={"kernel2": {"depth": [2]}}
)


def spread(space: Space, tasks: int, seed: int = 0) -> Distributions:
    """Of random logits, in double precision."""
    found = Distributions(space, [f"task{t}" for t in range(tasks)]).double()
    found.move(2 * torch.randn(found.logits.shape, generator=torch.Generator().manual_seed(seed)))
    return found


def every(space: Space) -> np.ndarray:
    """Each network once."""
    rows = np.array(list(itertools.product(*(range(size) for size in space.sizes.tolist()))))
    keys = space.keys(rows)
    return rows[[keys.index(key) for key in dict.fromkeys(keys)]]


def test_the_networks_of_a_space_have_all_the_probability() -> None:
    found = spread(SPACE, 3)
    rows = every(SPACE)
    assert len(rows) == SPACE.size == (3 + 9) * 2
    torch.testing.assert_close(found.log_prob(rows).exp().sum(1), torch.ones(3).double(), rtol=0, atol=1e-12)
    filled = SPACE.filled(SPACE.canonical(rows), np.random.default_rng(0))  # other values where a gene is not used
    assert torch.equal(found.log_prob(filled), found.log_prob(rows))


def test_two_options_are_a_bernoulli_variable() -> None:
    """Log-probabilities and gradients by their closed forms: ``a log p + (1 - a) log (1 - p)``, and ``a - p``."""
    space = Space({f"keep{i}": [False, True] for i in range(5)})
    found = spread(space, 2)
    theta = found.logits[..., 1] - found.logits[..., 0]
    p = 1 / (1 + torch.exp(-theta))
    rows = every(space)
    a = torch.from_numpy(rows).double()
    expected = (a * p[:, None].log() + (1 - a) * (1 - p[:, None]).log()).sum(-1)
    torch.testing.assert_close(found.log_prob(rows), expected, rtol=0, atol=1e-12)
    weights = torch.randn(2, len(rows), generator=torch.Generator().manual_seed(1)).double()
    gradient = found.gradient(rows, weights)
    torch.testing.assert_close(gradient[..., 1], torch.einsum("tn,tng->tg", weights, a - p[:, None]), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient[..., 0], -gradient[..., 1], rtol=0, atol=1e-12)


def test_gradients_are_those_of_autograd() -> None:
    found = spread(SPACE, 2)
    rows = SPACE.sample(9, np.random.default_rng(0))
    weights = torch.randn(2, 9, generator=torch.Generator().manual_seed(1)).double()
    logits = found.logits.clone().requires_grad_()
    found.logits = logits
    (weights * found.log_prob(rows)).sum().backward()
    expected: Tensor = logits.grad  # type: ignore[assignment]
    torch.testing.assert_close(found.gradient(rows, weights).detach(), expected.nan_to_num(), rtol=0, atol=1e-12)


def test_samples_are_those_of_the_mixture_and_of_a_task() -> None:
    found = spread(SPACE, 3)
    rows = every(SPACE)
    generator = torch.Generator().manual_seed(0)
    for task, expected in ((None, mixture(found.log_prob(rows)).exp()), ("task1", found.log_prob(rows)[1].exp())):
        drawn = SPACE.keys(found.sample(6000, generator, task))
        shares = torch.tensor([drawn.count(key) / 6000 for key in SPACE.keys(rows)])
        assert (shares - expected).abs().max() < 4 * (0.25 / 6000) ** 0.5
    assert found.sample(0).shape == (0, 4)
    torch.manual_seed(5)
    first = found.sample(4)
    torch.manual_seed(5)
    assert (found.sample(4) == first).all()  # of torch's random numbers


def test_tasks_take_turns_in_the_mixture() -> None:
    """Distributions that have parted have as many samples each."""
    space = Space({"a": [0, 1, 2]})
    found = Distributions(space, ["x", "y", "z"], limit=40.0)
    found.move(40 * torch.eye(3)[:, None])
    for seed in range(5):
        drawn = found.sample(12, torch.Generator().manual_seed(seed))[:, 0].reshape(4, 3)
        assert (np.sort(drawn, 1) == [0, 1, 2]).all()


def test_logits_stay_within_their_limit_and_options_possible() -> None:
    found = Distributions(SPACE, ["x", "y"], limit=5.0)
    found.move(torch.full(found.logits.shape, 1e6) * torch.tensor([0.0, 1.0, 0.0]))
    p = found.probabilities()
    assert found.most_probable().tolist() == [[1, 1, 1, 1]] * 2
    assert p[0, 0, 1].item() == pytest.approx(1 / (1 + math.exp(-5)))
    assert p[0, 0, 2] == 0 and p[0, 1, 0].item() == pytest.approx(math.exp(-5) / (1 + 2 * math.exp(-5)))
    assert found.logits.max() == 0 and found.logits[found.logits.isfinite()].min() == -5


def test_entropy_is_largest_at_first() -> None:
    found = Distributions(SPACE, ["x"])
    assert found.entropy().item() == pytest.approx(2 * math.log(2) + 2 * math.log(3))
    p = spread(SPACE, 1).probabilities()[0]
    terms = [-float(x) * math.log(float(x)) for x in p.flatten() if x > 0]
    assert spread(SPACE, 1).entropy().item() == pytest.approx(sum(terms))


def test_half_precision_does_not_reach_the_logits() -> None:
    found = Distributions(SPACE, ["x"], start={"wide": [0.3, 0.7]})
    before = found.logits.clone()
    assert found.to(torch.bfloat16).logits.dtype == torch.float32 and torch.equal(found.logits, before)
    assert found.half().double().logits.dtype == torch.float64
    state = found.state_dict()
    again = Distributions(SPACE, ["x"])
    again.load_state_dict(state)
    assert torch.equal(again.logits, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, r"tasks \[\], expected at least one"),
        ({"tasks": ["a", "a"]}, "expected at least one, with distinct names"),
        ({"limit": 0.0}, "limit 0.0, expected a number above 0"),
        ({"start": {"dept": [0.5, 0.5]}}, "start: unknown gene 'dept': did you mean 'depth'"),
        ({"start": {"depth": [0.5, 0.6]}}, "start: gene 'depth' has .* expected 2 probabilities above 0 whose sum is 1"),
        ({"start": {"depth": [1.0, 0.0]}}, "expected 2 probabilities above 0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Distributions(SPACE, **{"tasks": ["x"], **settings})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown task 'y': known: x"):
        Distributions(SPACE, ["x"]).sample(1, task="y")
