"""The claims' experiment with finite horizons: tasks whose states are a few kinds, which nobody is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from polytask.claim import Measurements
from polytask.papers.gfucb.finite import Map
from polytask.papers.gfucb.mdp import OptimisticValues, TabularTasks, run_episodes

COUNT, STATES, KINDS, CHOICES, HORIZON, MAPS, EPISODES = 5, 12, 3, 3, 4, 8, 60
"""Tasks, their states, of how many kinds these are, actions, steps, representations to choose from, episodes."""
SPREAD = 1.5
"""Deviation of the logits of the next state's kind: how much an action decides."""
EPISODE_RADII = (1.0, 3.0, 10.0, 30.0)
"""What each arm's radius was chosen from: those of values up to four, with a ridge of 1, are larger than a bandit's."""
CHOSEN = {"joint": 3.0, "independent": 3.0, "known": 10.0}
"""Of each arm, the best on the tasks of `tuned_episodes`, of the seed 1000, which is not the claim's."""


def grouped_tasks(seed: int, count: int) -> tuple[TabularTasks, list[Map]]:
    """Tasks whose states of one kind are alike in all of them, and representations, the first of which is the true one.

    A representation says of which group a state is, and what is done there: one of ``KINDS * CHOICES`` coordinates. In the
    true one's groups rewards and the next state's kind are the same, a state of that kind being drawn evenly, so that all
    tasks are linear in it, without Bellman error; tasks differ in rewards, evenly from 0 to 1, and in chances. The others
    group the same states at random, into groups of the same size.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(KINDS).repeat(STATES // KINDS)
    groups = [kinds, *(kinds[torch.randperm(STATES, generator=generator)] for _ in range(MAPS - 1))]
    rewards = torch.rand(count, KINDS, CHOICES, generator=generator)[:, kinds]
    chances = (SPREAD * torch.randn(count, KINDS, CHOICES, KINDS, generator=generator)).softmax(3)
    transitions = chances[:, kinds][..., kinds] * (KINDS / STATES)
    return TabularTasks(transitions, rewards, HORIZON), [_features(group) for group in groups]


def _features(group: Tensor) -> Map:
    table = torch.eye(KINDS * CHOICES)[(group[:, None] * CHOICES + torch.arange(CHOICES)).flatten()]
    return lambda inputs: table[inputs[:, 0]]


def measure_episodes(seed: int, data: Path, episodes: int = EPISODES) -> Measurements:
    """``"episodes ARM"``: the regret per task over all episodes, exactly, of values at the start, for three arms.

    ``joint`` has one confidence set for all tasks at each step, ``independent`` one for each task, both over the same
    representations; ``known`` is told the true one.
    """
    return {f"episodes {arm}": regret(arm, radius, seed, episodes) for arm, radius in CHOSEN.items()}


def regret(arm: str, radius: float, seed: int, episodes: int = EPISODES) -> float:
    """Cumulative, the mean over tasks."""
    tasks, maps = grouped_tasks(seed, COUNT)
    draws = torch.Generator().manual_seed(seed)
    if arm == "independent":
        each = [TabularTasks(tasks.transitions[i : i + 1], tasks.rewards[i : i + 1], HORIZON) for i in range(COUNT)]
        return sum(_played(maps, task, radius, episodes, draws) for task in each) / COUNT
    return _played(maps[:1] if arm == "known" else maps, tasks, radius, episodes, draws)


def _played(maps: Sequence[Map], tasks: TabularTasks, radius: float, episodes: int, draws: Generator) -> float:
    agent = OptimisticValues(maps, len(tasks.rewards), HORIZON, radius)
    return float(run_episodes(agent, tasks, episodes, draws).sum(0).mean())


def tuned_episodes(arm: str, seeds: Sequence[int] = (1000,)) -> dict[float, float]:
    """The regret per task of an arm with each radius, the mean over the tasks of these seeds."""
    return {radius: sum(regret(arm, radius, seed) for seed in seeds) / len(seeds) for radius in EPISODE_RADII}
