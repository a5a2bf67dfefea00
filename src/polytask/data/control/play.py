"""Acting: episodes by a policy, as transitions to learn from or as returns to report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from polytask.data.control.environments import Environment, Frame
from polytask.data.control.transitions import Transitions
from polytask.errors import InputError

Policy: TypeAlias = Callable[[Tensor], Tensor]
"""From observations ``(N, ...)`` to actions ``(N,)``."""


class Playing:
    """An environment in an episode: its stacked observation, and the frame that is new."""

    def __init__(self, environment: Environment, seed: int) -> None:
        self.environment = environment
        self.begin(seed)

    def begin(self, seed: int | None = None) -> None:
        """Another episode."""
        self.frame = self.environment.reset(seed)
        blank = [np.zeros_like(self.frame)] * (self.environment.stack - 1)
        self.observation: Frame = np.concatenate([*blank, self.frame]) if blank else self.frame

    def act(self, action: int) -> tuple[float, bool, bool]:
        """The reward, and whether the episode is done or cut off; the observation is the next."""
        self.frame, reward, done, cut = self.environment.step(action)
        kept = self.observation[len(self.frame) :]
        self.observation = np.concatenate([kept, self.frame]) if len(kept) else self.frame
        return reward, done, cut


def record(environment: Environment, steps: int, policy: Policy | None = None, seed: int = 0) -> Transitions:
    """So many transitions of episodes in ``environment``, the last one cut off.

    Args:
        environment: begun anew.
        steps: at least 1.
        policy: called with one observation ``(1, ...)``; uniformly random actions by default.
        seed: of the environment and of random actions.
    """
    if steps < 1:
        raise InputError(f"{environment.name}: {steps} steps to record, expected at least 1")
    rng, playing = np.random.default_rng(seed), Playing(environment, seed)
    rows: list[tuple[Any, ...]] = []
    for k in range(steps):
        if policy is None:
            action = int(rng.integers(environment.actions))
        else:
            action = int(policy(torch.from_numpy(playing.observation)[None]))
        frame = playing.frame
        reward, done, cut = playing.act(action)
        rows.append((frame, action, reward, done, False))
        if not done and (cut or k == steps - 1):
            rows.append((playing.frame, 0, 0.0, False, True))
        if done or cut:
            playing.begin()
    frames, *columns = zip(*rows, strict=True)
    stacked, (actions, rewards, dones, cuts) = torch.from_numpy(np.stack(frames)), map(torch.tensor, columns)
    return Transitions(environment.name, stacked, actions, rewards, dones, cuts, environment.actions, environment.stack)


@torch.no_grad()
def play(environments: Sequence[Environment], policy: Policy, seed: int = 0, limit: int | None = None) -> Tensor:
    """``(len(environments),)`` float64: the return, not discounted, of one episode in each, all of them side by side.

    Args:
        environments: each an object of its own; the ``i``-th is begun with ``seed + i``.
        policy: called with the observations of all episodes that are not over.
        seed: of the environments.
        limit: steps after which an episode is left.
    """
    running = {i: Playing(environment, seed + i) for i, environment in enumerate(environments)}
    returns, steps = torch.zeros(len(environments), dtype=torch.float64), 0
    while running and steps != limit:
        seen = torch.from_numpy(np.stack([playing.observation for playing in running.values()]))
        for (i, playing), action in zip(list(running.items()), policy(seen).tolist(), strict=True):
            reward, *over = playing.act(action)
            returns[i] += reward
            if any(over):
                del running[i]
        steps += 1
    return returns


def epsilon_greedy(values: Policy, epsilon: float, seed: int = 0) -> Policy:
    """The action of the largest of ``values(observations)``, ``(N, A)``; with probability ``epsilon`` any action instead."""
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon {epsilon}, expected 0 to 1")
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def policy(observations: Tensor) -> Tensor:
        found = values(observations)
        best = found.argmax(1).cpu()
        chance = torch.randint(found.shape[1], best.shape, generator=generator)
        return torch.where(torch.rand(best.shape, generator=generator) < epsilon, chance, best)

    return policy
