"""GFUCB: LinUCB as a special case, the joint bonus in closed form, enumeration as networks' truth, finite horizons."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.papers.gfucb import (
    PAPER,
    FineTuned,
    FiniteClass,
    Greedy,
    Independent,
    Linearised,
    Member,
    MultiHead,
    OptimisticValues,
    Round,
    TabularTasks,
    bellman_error,
    digits,
    grouped_tasks,
    horizons,
    image_rounds,
    joint_choice,
    joint_value,
    members,
    mlp,
    play,
    run_episodes,
    separable_choice,
)


def key(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(x: Tensor) -> Tensor:
    return x


def linear_rounds(count: int, tasks: int, actions: int = 4, width: int = 3, seed: int = 0) -> list[Round]:
    """Rewards linear in candidates of length at most 1, with noise of deviation 0.2."""
    generator = key(seed)
    heads = nn.functional.normalize(torch.randn(tasks, width, generator=generator), dim=1)
    rounds = []
    for _ in range(count):
        x = nn.functional.normalize(torch.randn(tasks, actions, width, generator=generator), dim=2)
        noise = 0.2 * torch.randn(tasks, generator=generator)
        rounds.append(Round(x, torch.einsum("mak,mk->ma", x, heads), noise))
    return rounds


def maps(count: int = 8, inputs: int = 6, width: int = 3) -> list[Any]:
    """Representations that are not linear."""
    matrices = torch.randn(count, inputs, width, generator=key(7))
    return [lambda x, b=b: torch.tanh(x @ b) for b in matrices]


def observed(count: int = 40, tasks: int = 3, inputs: int = 6, true: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Rows ``(N, inputs)`` of tasks in turn, with rewards by the representation of number ``true``."""
    generator = key(3)
    x = torch.randn(count, inputs, generator=generator)
    owners = torch.arange(count) % tasks
    heads = torch.randn(tasks, 3, generator=generator)
    rewards = (maps()[true](x) * heads[owners]).sum(1) + 0.1 * torch.randn(count, generator=generator)
    return x, owners, rewards


# The exact confidence set


class LinUCB:
    """By its definition, one task, one candidate after another."""

    def __init__(self, width: int, beta: float) -> None:
        self.v, self.b, self.beta = torch.eye(width).double(), torch.zeros(width).double(), beta

    def choose(self, candidates: Tensor) -> Tensor:
        inverse = self.v.inverse()
        values = [x @ inverse @ self.b + math.sqrt(self.beta * float(x @ inverse @ x)) for x in candidates[0].double()]
        return torch.tensor([max(range(len(values)), key=lambda a: values[a])])

    def learn(self, inputs: Tensor, rewards: Tensor) -> None:
        x = inputs[0].double()
        self.v += torch.outer(x, x)
        self.b += float(rewards[0]) * x


@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0])
def test_one_task_with_a_known_representation_is_linucb(beta: float) -> None:
    rounds = linear_rounds(60, 1)
    found = play(FiniteClass([same], 1, beta), rounds)
    torch.testing.assert_close(found, play(LinUCB(3, beta), rounds))
    apart = play(Independent([LinUCB(3, beta) for _ in range(4)]), linear_rounds(40, 4))
    torch.testing.assert_close(play(FiniteClass([same], 4, beta, joint=False), linear_rounds(40, 4)), apart)


def test_the_joint_bonus_is_the_root_of_the_sum_of_squares() -> None:
    generator, beta = key(), 0.7
    phi = torch.randn(5, 3, generator=generator).double()
    x = torch.randn(60, 3, generator=generator).double()
    (member,) = members([x], torch.arange(60) % 5, torch.randn(60, generator=generator).double(), 5, 1.0)
    means, directions = member.means(phi[:, None]), member.directions(phi[:, None])
    found = joint_value(means, directions, torch.zeros(5, dtype=torch.long), beta)
    inverse = torch.linalg.inv(member.gram)
    squares = torch.einsum("mk,mkl,ml->m", phi, inverse, phi)
    torch.testing.assert_close(found, (phi * member.own).sum() + (beta * squares.sum()).sqrt())
    # It is reached by these heads, on the boundary of the ball, and by none of many others there.
    best = member.own + (beta / squares.sum()).sqrt() * torch.einsum("mkl,ml->mk", inverse, phi)
    moved = best - member.own
    assert float(torch.einsum("mk,mkl,ml->", moved, member.gram, moved)) == pytest.approx(beta)
    torch.testing.assert_close((phi * best).sum(), found)
    for _ in range(200):
        other = torch.randn(5, 3, generator=generator).double()
        other *= (beta / torch.einsum("mk,mkl,ml->", other, member.gram, other)).sqrt()
        assert (phi * (member.own + other)).sum() <= found
    # One value at a time has the whole ball.
    upper = member.upper(phi[:, None], torch.arange(5), beta)[:, 0]
    torch.testing.assert_close(upper, (phi * member.own).sum(1) + (beta * squares).sqrt())


def test_of_equal_widths_the_joint_bonus_grows_as_the_root_of_the_number_of_tasks() -> None:
    tasks, width, beta = 9, 0.3, 0.5
    directions = width * torch.eye(tasks)[:, None]
    means = torch.zeros(tasks, 1)
    found = float(joint_value(means, directions, torch.zeros(tasks, dtype=torch.long), beta))
    assert found == pytest.approx(math.sqrt(beta * tasks) * width)
    assert found == pytest.approx(tasks * math.sqrt(beta) * width / 3)  # of separate balls, over the root of 9


def test_coordinate_ascent_is_near_the_best_of_all_choices() -> None:
    exact = 0
    for seed in range(40):
        means = torch.randn(4, 3, generator=key(seed)).double()
        directions = torch.randn(4, 3, 5, generator=key(seed + 100)).double()
        value = {
            a: float(joint_value(means, directions, torch.tensor(a), 0.8)) for a in itertools.product(range(3), repeat=4)
        }
        found = joint_choice(means, directions, 0.8)
        start = separable_choice(means, directions, 0.8)
        assert value[tuple(found.tolist())] >= value[tuple(start.tolist())] - 1e-9
        assert value[tuple(found.tolist())] >= 0.85 * max(value.values())
        exact += value[tuple(found.tolist())] >= max(value.values()) - 1e-9
        assert torch.equal(joint_choice(means, directions, 0.0), means.argmax(1))
        one = means[:1] + 0.8**0.5 * directions[:1].norm(dim=2)
        assert torch.equal(joint_choice(means[:1], directions[:1], 0.8), one.argmax(1))
    assert exact >= 25


def test_distances_are_minima_over_the_heads() -> None:
    x, owners, rewards = observed()
    features = [phi(x).double() for phi in maps()]
    found = members(features, owners, rewards.double(), 3, 0.5)
    losses = [member.loss for member in found]
    best = losses.index(min(losses))
    assert best == 2  # the representation that the rewards were made by
    f = (features[best] * found[best].own[owners]).sum(1)
    for phi, member in zip(features, found, strict=True):
        distance = 0.0
        for task in range(3):
            rows = owners == task
            # The ridge as further rows of ordinary least squares.
            a = torch.cat([phi[rows], 0.5**0.5 * torch.eye(3).double()])
            b = torch.cat([f[rows], 0.5**0.5 * member.own[task]])
            solution = torch.linalg.lstsq(a, b[:, None]).solution[:, 0]
            torch.testing.assert_close(member.centre[task], solution)
            distance += float((a @ solution - b).square().sum())
            own = torch.linalg.lstsq(a, torch.cat([rewards[rows].double(), torch.zeros(3).double()])[:, None]).solution
            torch.testing.assert_close(member.own[task], own[:, 0])
        assert member.distance == pytest.approx(distance, abs=1e-9)
    assert found[best].distance == pytest.approx(0, abs=1e-12)
    # Sets are nested: the larger the radius, the more representations.
    inside = [sum(member.distance <= beta for member in found) for beta in (0, 1, 10, 1e6)]
    assert inside[0] == 1 and inside == sorted(inside) and inside[-1] == 8


def test_the_truth_is_in_the_set_as_often_as_its_radius_says() -> None:
    def distance(seed: int) -> float:
        generator = key(seed)
        x = nn.functional.normalize(torch.randn(60, 3, generator=generator), dim=1).double()
        truth = nn.functional.normalize(torch.randn(2, 3, generator=generator), dim=1).double()
        owners = torch.arange(60) % 2
        rewards = (x * truth[owners]).sum(1) + 0.3 * torch.randn(60, generator=generator)
        (member,) = members([x], owners, rewards, 2, 1.0)
        off = truth - member.own
        return float(torch.einsum("mk,mkl,ml->", off, member.gram, off))

    beta = float(torch.tensor([distance(seed) for seed in range(400)]).quantile(0.9))
    share = sum(distance(seed) <= beta for seed in range(1000, 1400)) / 400
    assert share >= 0.85


def test_squared_widths_add_up_to_a_logarithm() -> None:
    agent, spent = FiniteClass([same], 2, 0.5), 0.0
    for candidates, means, noise in linear_rounds(80, 2, width=4):
        (member,) = agent._members(candidates)
        actions = agent.choose(candidates)
        played = candidates[torch.arange(2), actions]
        widths = torch.einsum("mk,mkl,ml->m", played.double(), torch.linalg.inv(member.gram), played.double())
        spent += float(widths.clamp(max=1).sum())
        agent.learn(played, means[torch.arange(2), actions] + noise)
    (member,) = agent._members(candidates)
    assert 1 < spent <= 2 * float(torch.linalg.slogdet(member.gram).logabsdet.sum())


def test_tied_tasks_are_one_task_that_sees_more() -> None:
    x, _, rewards = observed(20, 1)
    one = members([x.double()], torch.zeros(20, dtype=torch.long), rewards.double(), 1, 1.0)[0]
    copies = members([x.repeat(3, 1).double()], torch.zeros(60, dtype=torch.long), rewards.repeat(3).double(), 1, 3.0)[0]
    torch.testing.assert_close(copies.own, one.own)
    torch.testing.assert_close(copies.gram, 3 * one.gram)
    # In a network each task's rows count for the representation as if they were the one task's.
    single = MultiHead(mlp(6, 5, 2), 1)
    tied = MultiHead(single.encoder, 3)
    with torch.no_grad():
        tied.heads.weight.copy_(single.heads.weight.expand(3, -1))
    few, many = Linearised(single, sketch=10_000), Linearised(tied, sketch=10_000)
    few.learn(x[:1], rewards[:1])
    many.learn(x[:1].repeat(3, 1), rewards[:1].repeat(3))
    shared = slice(few.sketch)
    eye = torch.eye(few.sketch).double()
    torch.testing.assert_close(many.gram[shared, shared] - eye, 3 * (few.gram[shared, shared] - eye))


def test_finite_classes_are_explored_exactly() -> None:
    x, owners, rewards = observed()
    agent = FiniteClass(maps(), 3, beta=4.0)
    for i in range(0, 39, 3):
        agent.learn(x[i : i + 3], rewards[i : i + 3])
    candidates = torch.randn(3, 3, 6, generator=key(9))
    values: dict[tuple[int, ...], float] = {}
    found = members([phi(x[:39]).double() for phi in maps()], owners[:39], rewards[:39].double(), 3, 1.0)
    for phi, member in zip(maps(), found, strict=True):
        if member.distance <= 4.0:
            features = phi(candidates.flatten(0, 1)).double().view(3, 3, 3)
            for a in itertools.product(range(3), repeat=3):
                value = joint_value(
                    member.means(features), member.directions(features), torch.tensor(a), 4.0 - member.distance
                )
                values[a] = max(values.get(a, -math.inf), float(value))
    assert values[tuple(agent.choose(candidates).tolist())] >= 0.98 * max(values.values())


# Networks


class Fixed(nn.Module):
    """A representation without parameters."""

    width = 3

    def __init__(self, phi: Any) -> None:
        super().__init__()
        self.phi = phi

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.phi(x)
        return features


def solved(number: int, tasks: int = 3) -> tuple[MultiHead, Member, Tensor, Tensor]:
    """A network whose representation is one of `maps` and whose heads are its ridge solutions; its member; the data."""
    x, owners, rewards = observed()
    phi = maps()[number]
    member = members([phi(x).double()], owners, rewards.double(), tasks, 1.0)[0]
    network = MultiHead(Fixed(phi), tasks)
    with torch.no_grad():
        network.heads.weight.copy_(member.own)
    return network, member, x, rewards


def taught(agent: Any, x: Tensor, rewards: Tensor) -> Any:
    agent.every = 10**9  # the heads are solved already
    for i in range(0, 39, 3):
        agent.learn(x[i : i + 3], rewards[i : i + 3])
    agent.learn(torch.stack([x[39], x[0], x[0]]), torch.tensor([float(rewards[39]), math.nan, math.nan]))
    return agent


@pytest.mark.parametrize("number", [0, 2, 5])
def test_with_a_frozen_representation_both_ways_agree_with_the_exact_set(number: int) -> None:
    beta = 0.5
    network, member, x, rewards = solved(number)
    linearised = taught(Linearised(network, beta), x, rewards)
    tuned = taught(FineTuned(network, beta, ridge=1.0, ascents=40, rate=0.05, starts=2), x, rewards)
    for seed in range(2):
        candidates = torch.randn(3, 4, 6, generator=key(20 + seed))
        features = maps()[number](candidates.flatten(0, 1)).double().view(3, 4, 3)
        means, directions = member.means(features), member.directions(features)
        choices = torch.tensor(list(itertools.product(range(4), repeat=3)))
        exact = max(float(joint_value(means, directions, a, beta)) for a in choices)
        assert torch.equal(linearised.choose(candidates), joint_choice(means, directions, beta))
        actions, value = tuned.optimistic(candidates)
        assert 0.97 * exact <= value <= exact + 1e-3
        assert value <= float(joint_value(means, directions, actions, beta)) + 1e-3


def test_no_radius_is_greedy() -> None:
    network, _, x, rewards = solved(1)
    candidates = torch.randn(3, 4, 6, generator=key(5))
    agents = [Greedy(network, 0.0), Linearised(network, 0.0), FineTuned(network, 0.0)]
    choices = [taught(agent, x, rewards).choose(candidates) for agent in agents]
    assert all(torch.equal(choice, choices[0]) for choice in choices)
    assert torch.equal(choices[0], agents[0].means(candidates).argmax(1))


def test_gradients_are_autograds_and_their_sketch_keeps_inner_products() -> None:
    torch.manual_seed(0)
    network = MultiHead(mlp(6, 20, 4), 3)
    x, owners, _ = observed(12)
    found = Linearised(network, sketch=10_000).gradients(x, owners)
    for row, inputs, task in zip(found, x, owners, strict=True):
        value = network(inputs[None])[0, task]
        each = torch.autograd.grad(value, [*network.encoder.parameters(), network.heads.weight])
        torch.testing.assert_close(row, torch.cat([g.flatten() for g in each]).double(), rtol=1e-4, atol=1e-6)
    products = found @ found.T
    sketches = [Linearised(network, sketch=64, seed=seed).gradients(x, owners) for seed in range(200)]
    assert sketches[0].shape == (12, 64 + 12)
    mean = torch.stack([g @ g.T for g in sketches]).mean(0)
    assert float((mean - products).abs().max()) < 0.05 * float(products.max())


def test_losses_are_the_joint_mean_squared_error_and_gradients_meet_in_the_representation() -> None:
    network = MultiHead(mlp(6, 5, 2), 3)
    x, owners, rewards = observed(12)
    losses = network.losses((x, {"task": owners, "reward": rewards}))
    values = network(x)[torch.arange(12), owners]
    torch.testing.assert_close(sum(losses.values()), (values - rewards).square().mean())
    torch.testing.assert_close(network.of(x, owners), values)
    only = network.losses((x[:4], {"task": torch.full((4,), 1), "reward": rewards[:4]}))
    assert not only["0"].any() and not only["2"].any() and bool(only["1"] > 0)
    assert list(network.shared_parameters()) == list(network.encoder.parameters())


def test_a_linear_encoder_is_a_low_rank_bandit() -> None:
    encoder = nn.Linear(6, 2, bias=False)
    network = MultiHead(encoder, 3, width=2)
    x, owners, _ = observed(9)
    low_rank = network.heads.weight @ encoder.weight  # one vector of rank 2 for each task
    torch.testing.assert_close(network.of(x, owners), (x * low_rank[owners]).sum(1))


def test_players_learn_from_what_they_play() -> None:
    torch.manual_seed(0)
    rounds = linear_rounds(40, 3, actions=5, width=4)
    settings: dict[str, Any] = {"every": 5, "steps": 40, "lr": 1e-2}
    for agent in (
        Linearised(MultiHead(mlp(4, 16, 4), 3), 0.01, sketch=64, **settings),
        FineTuned(MultiHead(mlp(4, 16, 4), 3), 0.01, ascents=3, **settings),
    ):
        regret = play(agent, rounds)
        assert float(regret[25:].mean()) < 0.6 * float(regret[:10].mean())
    missing = Greedy(MultiHead(mlp(4, 16, 4), 3), every=1)
    missing.learn(torch.randn(3, 4), torch.full((3,), math.nan))  # nothing was seen: nothing to fit
    assert len(missing.rows()[1]) == 0


def test_bad_input_is_named() -> None:
    network = MultiHead(mlp(4, 8, 2), 2)
    for wrong, message in (
        (lambda: FiniteClass([], 2, 0.1), "0 representations"),
        (lambda: FiniteClass([same], 2, -1.0), "beta -1.0"),
        (lambda: Linearised(network, ridge=0.0), "ridge 0.0"),
        (lambda: FineTuned(network, ascents=0), "ascents 0"),
        (lambda: Greedy(network, 1.5), "epsilon 1.5"),
        (lambda: Greedy(network, every=0), "every 0"),
        (lambda: Independent([]), "no players"),
        (lambda: OptimisticValues([same], 1, 0, 0.1), "horizon 0"),
        (lambda: Greedy(network).choose(torch.zeros(3, 2, 4)), r"expected \(2, actions, ...\)"),
        (lambda: Greedy(network).learn(torch.zeros(2, 4), torch.tensor([math.inf, 0.0])), "NaN where none was seen"),
        (lambda: FiniteClass([same], 2, 0.1).learn(torch.zeros(2, 4), torch.zeros(3)), "expected 2 numbers"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()


# Finite horizons


def lock(length: int, tasks: int) -> TabularTasks:
    """A chain with one action in each state that leads on, another for each task, and a reward at its end alone."""
    transitions = torch.zeros(tasks, length + 1, 2, length + 1)
    rewards = torch.zeros(tasks, length + 1, 2)
    good = torch.randint(2, (tasks, length), generator=key(1))
    for task in range(tasks):
        transitions[task, length, :, length] = 1  # the state from which nothing comes back
        for state in range(length):
            right = int(good[task, state])
            transitions[task, state, right, min(state + 1, length)] = 1
            transitions[task, state, 1 - right, length] = 1
        rewards[task, length - 1, good[task, length - 1]] = 1
    return TabularTasks(transitions, rewards, length)


def one_hot(tasks: TabularTasks) -> Any:
    count = tasks.rewards[0].numel()
    return lambda inputs: nn.functional.one_hot(inputs[:, 0], count).float()


def test_optimism_opens_a_lock_that_greed_does_not() -> None:
    tasks = lock(5, 3)
    torch.testing.assert_close(tasks.values(), torch.ones(3))
    bold = run_episodes(OptimisticValues([one_hot(tasks)], 3, 5, beta=1.0), tasks, 60, key())
    shy = run_episodes(OptimisticValues([one_hot(tasks)], 3, 5, beta=0.0), tasks, 60, key())
    assert not bold[-10:].any() and bool((shy[-10:] == 1).any())


def test_values_are_those_of_dynamic_programming_once_all_is_known() -> None:
    generator = key(4)
    transitions = torch.zeros(2, 3, 2, 3).scatter_(3, torch.randint(3, (2, 3, 2, 1), generator=generator), 1.0)
    tasks = TabularTasks(transitions, torch.rand(2, 3, 2, generator=generator), 4)
    agent = OptimisticValues([one_hot(tasks)], 2, 4, beta=0.01, ridge=1e-3)
    regrets = run_episodes(agent, tasks, 80, key())
    assert float(regrets[-20:].mean()) < 0.05 * float(regrets[:3].mean()) and bool((regrets >= -1e-6).all())
    q = agent.values(0, tasks.inputs[:1].expand(2, -1, -1), torch.arange(2))
    best = tasks.values().double()
    assert bool((q.max(1).values >= best - 0.01).all())  # optimistic, but for the ridge
    torch.testing.assert_close(q.max(1).values, best, atol=0.25, rtol=0)


def test_one_step_is_the_bandit() -> None:
    rounds = linear_rounds(30, 1)
    values, bandit = OptimisticValues([same], 1, 1, beta=0.3), FiniteClass([same], 1, 0.3)
    for candidates, means, noise in rounds:
        played = candidates[:, bandit.choose(candidates)[0]]
        reward = means[:, 0] * 0 + noise
        values.learn(played[None], reward[None], candidates[None])
        bandit.learn(played, reward)
    (member,) = bandit._members(candidates)
    upper = member.upper(candidates.double(), torch.zeros(1, dtype=torch.long), 0.3).clamp(0, 1)
    torch.testing.assert_close(values.values(0, candidates, torch.zeros(1, dtype=torch.long)), upper)


def test_a_class_of_abstractions_is_learned_with_the_values() -> None:
    """Six states that are three twice over: the right abstraction has no Bellman error, a wrong one has."""
    pairs, tasks = torch.arange(6) % 3, lock(2, 2)
    twice = torch.zeros(2, 6, 2, 6)
    twice[:, :, :, :3] = tasks.transitions[:, pairs]
    whole = TabularTasks(twice, tasks.rewards[:, pairs], 2)
    groups = {"right": pairs, "wrong": torch.arange(6) // 2}
    features = {
        name: nn.functional.one_hot(group[:, None] * 2 + torch.arange(2), 6).float() for name, group in groups.items()
    }
    v = torch.rand(3, generator=key(2))[pairs]
    errors = {name: bellman_error(phi, whole.rewards[0], whole.transitions[0], v) for name, phi in features.items()}
    assert errors["right"] < 1e-6 < 0.05 < errors["wrong"]
    every = torch.eye(12).view(6, 2, 12)
    assert bellman_error(every, whole.rewards[1], whole.transitions[1], v) < 1e-6
    table = [phi.flatten(0, 1) for phi in features.values()]
    agent = OptimisticValues([lambda inputs, phi=phi: phi[inputs[:, 0]] for phi in table], 2, 2, beta=0.5)
    assert not run_episodes(agent, whole, 30, key())[-5:].any()


# The experiment


def test_rounds_show_different_classes_and_tasks_value_them_differently() -> None:
    images, labels = torch.arange(200.0)[:, None], torch.arange(200) % 10
    rounds = image_rounds(images, labels, seed=1, tasks=4, rounds=30)
    value: dict[tuple[int, int], set[float]] = {}
    for candidates, means, _ in rounds:
        classes = candidates[..., 0].long() % 10
        assert all(len(set(row.tolist())) == 5 for row in classes)
        for task, (row, mean) in enumerate(zip(classes, means, strict=True)):
            for c, m in zip(row.tolist(), mean.tolist(), strict=True):
                value.setdefault((task, c), set()).add(round(9 * m, 3))
    assert all(len(found) == 1 for found in value.values())
    for task in range(4):
        assert {next(iter(value[task, c])) for c in range(10)} == set(range(10))
    again = image_rounds(images, labels, seed=1, tasks=4, rounds=5)
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(again, rounds, strict=False))
    assert rounds[0].only(slice(2)).means.shape == (2, 5)


def test_true_classes_are_a_lower_envelope() -> None:
    images, labels = digits.small_digits()
    rounds = image_rounds(images, labels, 0, tasks=2, rounds=80)
    flat = {tuple(image.tolist()): int(label) for image, label in zip(images, labels, strict=True)}
    classes = FiniteClass(
        [lambda x: nn.functional.one_hot(torch.tensor([flat[tuple(row.tolist())] for row in x], dtype=torch.long), 10)],
        2,
        0.1,
        joint=False,
    )
    pixels = FiniteClass([digits.with_constant], 2, 0.1, joint=False)
    assert float(play(classes, rounds).sum()) < float(play(pixels, rounds).sum())


def test_the_experiment_measures_what_the_claims_and_the_plot_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("EVERY", 5), ("STEPS", 2), ("SKETCH", 16)):
        monkeypatch.setattr(digits, name, value)
    found = {**digits.measure(0, Path(), rounds=10), **horizons.measure_episodes(0, Path(), episodes=3)}
    for claim in PAPER.claims:
        assert all(math.isfinite(found[name]) for name in claim.pair)
    assert PAPER.plot is not None and PAPER.plot({0: found, 1: found}).axes


def test_every_arm_is_tuned_on_as_many_values_and_has_the_best_of_its_own() -> None:
    assert len(digits.RADII) == len(digits.CHANCES) == len(horizons.EPISODE_RADII)
    for arm, value in digits.CHOSEN.items():
        assert value in (digits.CHANCES if arm == "greedy" else digits.RADII)
    assert set(horizons.CHOSEN.values()) <= set(horizons.EPISODE_RADII)
    assert not set(digits.TUNING) & set(range(100))
    tuned = digits.tuned("pixels", seeds=(1000,), rounds=5)
    assert tuned == {radius: float(digits.regrets("pixels", radius, 1000, 5).sum(0).mean()) for radius in digits.RADII}


def test_grouped_tasks_are_linear_in_the_first_representation_alone() -> None:
    tasks, groupings = grouped_tasks(3, 2)
    torch.testing.assert_close(tasks.transitions.sum(3), torch.ones(tasks.rewards.shape))
    values = torch.rand(horizons.KINDS, generator=key(1)).repeat(horizons.STATES // horizons.KINDS)
    errors = [
        bellman_error(
            phi(tasks.inputs.flatten(0, 1)).view(*tasks.inputs.shape[:2], -1), tasks.rewards[0], tasks.transitions[0], values
        )
        for phi in groupings
    ]
    assert len(groupings) == horizons.MAPS and errors[0] < 1e-6 < 0.05 < min(errors[1:])


def test_arms_of_one_task_or_one_representation_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizons, "MAPS", 1)
    assert horizons.regret("joint", 3.0, 7, episodes=4) == horizons.regret("known", 3.0, 7, episodes=4)
    monkeypatch.setattr(horizons, "MAPS", 4)
    monkeypatch.setattr(horizons, "COUNT", 1)
    assert horizons.regret("joint", 3.0, 7, episodes=6) == horizons.regret("independent", 3.0, 7, episodes=6)
