"""The claims on a game: features learned without reward, a linear policy from a few transitions with it, MinAtar's Breakout.

All arms see the same transitions of a random policy, and rewards of the first of them alone. Features are frozen, and least
squares finds the policy; DQN trains the same encoder end to end, for as many updates. Each arm has as many trials, of ridges
or of learning rates, and the one whose policy earns most in validation episodes is tested in others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from polytask.claim import Measurements
from polytask.data.control import MinAtar, Policy, TransitionBatches, Transitions, epsilon_greedy, play, record
from polytask.papers.proto_value.cumulants import Cumulants, HashIndicators, NetworkCumulants, NetworkIndicators
from polytask.papers.proto_value.dqn import DoubleDQN
from polytask.papers.proto_value.lspi import lspi
from polytask.papers.proto_value.model import ProtoValues
from polytask.papers.proto_value.networks import RandomNetworks, SmallEncoder
from polytask.training import fit

GAME, CHANNELS, SIZE = "breakout", 4, 10
LAYERS = ((8, 3, 2),)
"""Of the random networks: one convolution."""
RECORDED, REWARDED = 30_000, 10_000
UPDATES, WARM_UP, BATCH, RATE = 1000, 200, 64, 1e-3
RIDGES, RATES = (1e-5, 1e-4, 1e-3), (3e-4, 1e-3, 3e-3)
VALIDATION, EPISODES, LIMIT = 20, 50, 1000
TASKS = (1, 10, 100)


def cumulants(kind: str, tasks: int) -> Cumulants:
    """``"indicators"``, ``"hash"`` or ``"numbers"``, the random networks' outputs themselves."""
    if kind == "hash":
        return HashIndicators(CHANNELS * SIZE**2, tasks)
    network = RandomNetworks(tasks, min(tasks, 10), CHANNELS, SIZE, LAYERS, scale=1.0)
    return NetworkIndicators(network, tasks) if kind == "indicators" else NetworkCumulants(network, tasks)


def pretrained(transitions: Transitions, kind: str, tasks: int, seed: int, updates: int = UPDATES) -> ProtoValues:
    """Proto-values of so many tasks, trained on ``transitions``; the encoder is the same of all at first."""
    torch.manual_seed(seed)
    model = ProtoValues(SmallEncoder(CHANNELS, SIZE), cumulants(kind, tasks), transitions.actions, warm_up=WARM_UP)
    steps = updates + (WARM_UP if "thresholds" in model.tasks else 0)
    rates = {"cumulants.*": 1e-2, "*": RATE}
    fit(model, TransitionBatches(transitions, BATCH, seed), steps=steps, optimizer=torch.optim.Adam, lr=rates, seed=seed)
    return model


def measure(
    seed: int, data: Path, recorded: int = RECORDED, updates: int = UPDATES, episodes: int = EPISODES
) -> Measurements:
    """``"ARM return"``, the mean over episodes, of proto-values of 1, 10 and 100 sets (``"sets 100"``), of 100 sets by
    hashing and 100 random cumulants, of the encoder as it is at first, of pixels, of DQN, and of random actions; and
    ``"share"``, of the observations in a set.
    """
    transitions = record(MinAtar(GAME), recorded, seed=1000 * seed)
    rewarded = transitions.head(recorded * REWARDED // RECORDED)
    score = partial(_score, seed=1000 * seed, episodes=episodes)
    found: dict[str, float] = {}
    arms = {f"sets {m}": ("indicators", m) for m in TASKS} | {"hash": ("hash", 100), "numbers": ("numbers", 100)}
    encoders: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, (kind, tasks) in arms.items():
        model = pretrained(transitions, kind, tasks, seed, updates).requires_grad_(False)
        encoders[name] = model.features
        if name == "sets 100":
            found["share"] = float(model.cumulants(transitions.observations(transitions.places[:5000]))[0].mean())
    torch.manual_seed(seed)
    encoders["random encoder"] = SmallEncoder(CHANNELS, SIZE).requires_grad_(False)
    encoders["pixels"] = lambda images: images.flatten(1)
    for name, encode in encoders.items():
        found[f"{name} return"] = score(by_ridge(rewarded, encode))
    found["dqn return"] = score(by_rate(rewarded, seed, updates))
    found["random return"] = score({"": lambda images: torch.zeros(len(images), rewarded.actions)}, epsilon=1.0)
    return found


def by_ridge(rewarded: Transitions, encode: Callable[[Tensor], Tensor]) -> dict[str, Policy]:
    """Values of actions on features, by the ridge that least squares used."""
    batch = rewarded.batch(torch.arange(len(rewarded)))
    batch = batch._replace(observation=encode(batch.observation), next=encode(batch.next))
    solved = {ridge: lspi(batch, rewarded.actions, ridge=ridge)[0] for ridge in RIDGES}
    return {str(ridge): lambda images, values=values: values(encode(images)) for ridge, values in solved.items()}  # type: ignore[misc]


def by_rate(rewarded: Transitions, seed: int, updates: int) -> dict[str, Policy]:
    """DQN trained end to end, by its learning rate."""
    found: dict[str, Policy] = {}
    for rate in RATES:
        torch.manual_seed(seed)
        encoder = SmallEncoder(CHANNELS, SIZE)
        values = DoubleDQN(rewarded.actions, encoder.width, encoder, period=100)
        batches = TransitionBatches(rewarded, BATCH, seed, steps=5, gamma=values.gamma)
        fit(values, batches, steps=updates, optimizer=torch.optim.Adam, lr={"*": rate}, seed=seed)
        found[str(rate)] = values.eval()
    return found


def _score(trials: Mapping[str, Policy], seed: int, episodes: int, epsilon: float = 1e-3) -> float:
    """The mean return of the trial that earned most in other episodes."""

    def mean(values: Policy, count: int, first: int) -> float:
        policy = epsilon_greedy(values, epsilon, first)
        return float(play([MinAtar(GAME) for _ in range(count)], policy, first, LIMIT).mean())

    validated = {name: mean(values, VALIDATION, seed + 500) for name, values in trials.items()} if len(trials) > 1 else {}
    best = max(validated, key=lambda name: validated[name]) if validated else next(iter(trials))
    return mean(trials[best], episodes, seed + 700)
