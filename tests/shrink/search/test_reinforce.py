"""Importance-weighted REINFORCE: the estimator against exact gradients, its weights, its baselines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.shrink.search.test_distributions import SPACE, every, spread
from torch import Tensor

from polytask.errors import InputError
from polytask.shrink.search import Distributions, MultiTaskReinforce, Space
from polytask.shrink.search.distributions import mixture
from polytask.shrink.search.reinforce import effective_size

BINARY = Space({f"keep{i}": [False, True] for i in range(7)})


def rewards_of(rows: np.ndarray, tasks: int) -> Tensor:
    """``(T, N)``, different for each task and network."""
    return torch.randn(tasks, len(rows), generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("space", [BINARY, SPACE], ids=["binary", "conditional"])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_the_estimate_is_unbiased(space: Space, tasks: int) -> None:
    """``E_q[rho_t (R_t - b_t) grad log pi_t]``, counted out, is the gradient of ``sum_a pi_t(a) R_t(a)``."""
    found = spread(space, tasks)
    reinforce = MultiTaskReinforce(found)
    rows = every(space)
    rewards = rewards_of(rows, tasks)
    q = mixture(found.log_prob(rows)).exp()
    one = [reinforce.gradient(row[None], reinforce.ratios(row[None]), rewards[:, [n]] - 0.7) for n, row in enumerate(rows)]
    estimate = sum(weight * each for weight, each in zip(q, one, strict=True))
    logits = found.logits.clone().requires_grad_()
    found.logits = logits
    (found.log_prob(rows).exp() * rewards).sum().backward()
    exact: Tensor = logits.grad  # type: ignore[assignment]
    torch.testing.assert_close(torch.as_tensor(estimate).detach(), exact.nan_to_num(), rtol=0, atol=1e-12)


def test_one_task_and_equal_tasks_are_plain_reinforce() -> None:
    rows = every(BINARY)[::9]
    one = MultiTaskReinforce(spread(BINARY, 1))
    assert torch.equal(one.ratios(rows), torch.ones(1, len(rows)).double())
    several = Distributions(BINARY, ["x", "y", "z"]).double()
    several.move(torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1))
    torch.testing.assert_close(
        MultiTaskReinforce(several).ratios(rows), torch.ones(3, len(rows)).double(), rtol=0, atol=1e-12
    )
    rewards = rewards_of(rows, 1)
    p = one.distributions.probabilities()
    score = torch.nn.functional.one_hot(torch.from_numpy(rows), 2) - p
    plain = (rewards[0][:, None, None] * score).mean(0)
    torch.testing.assert_close(one.gradient(rows, one.ratios(rows), rewards)[0], plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tasks", [2, 3, 10])
def test_weights_are_bounded_by_the_number_of_tasks_and_one_on_average(tasks: int) -> None:
    found = spread(BINARY, tasks)
    rows = every(BINARY)
    ratios = MultiTaskReinforce(found).ratios(rows)
    assert ratios.max() <= tasks + 1e-12 and ratios.min() >= 0
    average = (mixture(found.log_prob(rows)).exp() * ratios).sum(1)
    torch.testing.assert_close(average, torch.ones(tasks).double(), rtol=0, atol=1e-12)


def test_weights_stay_finite_where_probabilities_are_not_numbers_any_more() -> None:
    wide = Space({f"keep{i}": [False, True] for i in range(400)})
    found = Distributions(wide, ["x", "y"], limit=40.0)
    found.move(torch.tensor([[40.0, 0.0], [0.0, 40.0]])[:, None].expand(-1, 400, -1))
    rows = np.array([[0] * 400, [1] * 400, [0, 1] * 200])
    assert (found.log_prob(rows).exp() == 0).any()
    assert MultiTaskReinforce(found).ratios(rows).tolist() == [[2, 0, 1], [0, 2, 1]]


def test_a_constant_reward_moves_nothing() -> None:
    """The expected gradient is 0 without a baseline; with it, that of every sample is."""
    found = spread(BINARY, 3)
    rows = every(BINARY)
    reinforce = MultiTaskReinforce(found, samples=4)
    q = mixture(found.log_prob(rows)).exp()
    one = [reinforce.gradient(row[None], reinforce.ratios(row[None]), torch.full((3, 1), 5.0).double()) for row in rows]
    assert abs(sum(weight * each for weight, each in zip(q, one, strict=True))).max() < 1e-12
    before = found.logits.clone()
    for start in range(0, 40, 4):
        reinforce.update(rows[start : start + 4], np.full((4, 3), 5.0))
    torch.testing.assert_close(found.logits, before, rtol=0, atol=1e-12)


def test_the_baseline_never_holds_the_sample_that_it_is_for() -> None:
    """In the first batch it is the mean of the others; afterwards that of earlier batches."""
    rows = every(BINARY)[:6]
    values = np.arange(6.0)[:, None]

    def moved(first: np.ndarray, second: np.ndarray) -> Tensor:
        reinforce = MultiTaskReinforce(spread(BINARY, 1), lr=0.1, standardise=False, memory=0.5)
        reinforce.update(rows, first)
        before = reinforce.distributions.logits.clone()
        reinforce.update(rows, second)
        return reinforce.distributions.logits - before

    one = MultiTaskReinforce(spread(BINARY, 1), lr=0.1, standardise=False)
    score = torch.nn.functional.one_hot(torch.from_numpy(rows), 2) - one.distributions.probabilities()
    others = torch.tensor([[(15 - value) / 5] for value in range(6)])[..., None]
    expected = 0.1 * ((torch.from_numpy(values)[..., None] - others) * score).mean(0)
    before = one.distributions.logits.clone()
    one.update(rows, values)
    step = (one.distributions.logits - before)[0]
    torch.testing.assert_close(step[:, 0] - step[:, 1], expected[:, 0] - expected[:, 1], rtol=0, atol=1e-6)
    assert one.baseline[0].tolist() == [2.5]
    # Afterwards it is that of earlier batches: the difference of two steps is that of the rewards alone.
    difference = moved(values, values + 1) - moved(values, values)
    plain = 0.1 * score.mean(0)
    found = difference[0, :, 1] - difference[0, :, 0]
    assert (found - (plain[:, 1] - plain[:, 0])).abs().max() < 0.05  # the distribution is the same in both


def test_rewards_in_standard_deviations_do_not_know_their_scale() -> None:
    def end(scale: float, standardise: bool = True) -> Tensor:
        reinforce = MultiTaskReinforce(Distributions(BINARY, ["x", "y"]).double(), standardise=standardise, lr=0.5)
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            rows = reinforce.distributions.sample(12, generator)
            quality = np.stack([rows.sum(1), -rows[:, 0] + 0.1 * rows[:, 1]], 1)
            reinforce.update(rows, scale * quality, penalty=0.3 * rows[:, :2])
        return reinforce.distributions.logits

    torch.testing.assert_close(end(1000.0), end(1.0), rtol=0, atol=1e-5)
    assert (end(1000.0, False) - end(1.0, False)).abs().max() > 0.5


def test_statistics_are_those_of_all_networks_so_far() -> None:
    reinforce = MultiTaskReinforce(Distributions(BINARY, ["x", "y"]))
    values = np.random.default_rng(0).normal(3, 2, (30, 2))
    values[4, 0] = values[20, 1] = np.nan
    rows = BINARY.sample(30, np.random.default_rng(0))
    for start in range(0, 30, 10):
        reinforce.update(rows[start : start + 10], values[start : start + 10])
    count, mean, squares = reinforce.moments.numpy()
    assert count.tolist() == [29, 29]
    assert mean == pytest.approx(np.nanmean(values, 0), rel=1e-5)
    assert np.sqrt(squares / count) == pytest.approx(np.nanstd(values, 0), rel=1e-5)


def test_a_task_without_rewards_learns_nothing() -> None:
    reinforce = MultiTaskReinforce(Distributions(BINARY, ["x", "y"]))
    rows = BINARY.sample(12, np.random.default_rng(0))
    quality = np.stack([rows.sum(1).astype(float), np.full(12, np.nan)], 1)
    effective = reinforce.update(rows, quality)
    assert effective.tolist() == pytest.approx([12, 0]) and reinforce.skipped.tolist() == [0, 1]
    assert reinforce.distributions.logits[1].abs().max() == 0 and reinforce.distributions.logits[0].abs().max() > 0
    assert reinforce.baseline[:, 1].isnan().all()


def test_the_effective_sample_size_and_what_is_skipped() -> None:
    weights = torch.tensor([[1.0, 1, 1, 1], [0, 3, 0, 0], [2, 1, 1, 0], [0, 0, 0, 0]])
    assert effective_size(weights).tolist() == pytest.approx([4, 1, 16 / 6, 0])
    space = Space({"a": [0, 1]})
    found = Distributions(space, ["x", "y"], limit=30.0)
    found.move(torch.tensor([[30.0, 0.0], [0.0, 30.0]])[:, None])
    reinforce = MultiTaskReinforce(found, effective=0.25)
    rows = np.array([[0]] * 10 + [[1]] * 2)
    before = found.logits.clone()
    effective = reinforce.update(rows, np.arange(24.0).reshape(12, 2))
    assert effective.tolist() == pytest.approx([10, 2]) and reinforce.skipped.tolist() == [0, 1]
    assert torch.equal(found.logits[1], before[1])
    assert MultiTaskReinforce(Distributions(space, [*"abcde"])).effective == 0.1


def test_many_weights_are_divided_by_their_sum() -> None:
    reinforce = MultiTaskReinforce(spread(BINARY, 2))
    rows = every(BINARY)[:8]
    ratios, advantages = reinforce.ratios(rows), rewards_of(rows, 2)
    expected = reinforce.distributions.gradient(rows, ratios / ratios.sum(1, keepdim=True) * advantages)
    assert torch.equal(reinforce.gradient(rows, ratios, advantages), expected)
    few = reinforce.distributions.gradient(rows[:7], ratios[:, :7] / 7 * advantages[:, :7])
    assert torch.equal(reinforce.gradient(rows[:7], ratios[:, :7], advantages[:, :7]), few)


def test_batches_shrink_with_the_entropy() -> None:
    found = Distributions(BINARY, ["x", "y"], limit=20.0)
    reinforce = MultiTaskReinforce(found, samples=40, by_entropy=True)
    assert reinforce.count == 40
    step = torch.zeros(2, 7, 2)
    step[0, :, 1] = 20.0  # one of two tasks is certain
    found.move(step)
    assert reinforce.count == 20
    found.move(step.flip(0))
    assert reinforce.count == 2
    assert MultiTaskReinforce(found, samples=40).count == 40


@pytest.mark.parametrize("settings", [{"samples": 0}, {"lr": 0.0}, {"lr": math.inf}, {"memory": 1.0}, {"effective": 1.5}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(settings))} {next(iter(settings.values()))}"):
        MultiTaskReinforce(Distributions(BINARY, ["x"]), **settings)  # type: ignore[arg-type]
