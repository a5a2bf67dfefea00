"""GFUCB for finite horizons: values backward in time, for all tasks at once, of representations that tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from polytask.errors import InputError
from polytask.papers.gfucb.finite import Map, Member, members


class OptimisticValues:
    """Optimistic values ``Q_h`` of tasks with the same horizon, whose representation is one of finitely many.

    Backward from the last step, ``Q_h`` is fitted to ``r + max_a Q_(h+1)(s', a)`` by joint least squares over all tasks'
    steps ``h``, as in the bandit; each value is the largest that a function in the confidence set has there, from 0 to the
    number of steps that are left. The paper is optimistic once, about the sum of the tasks' values at the start, over the
    sets of all steps together; that cannot be computed, and this is its usual relaxation, optimistic at every step. With
    one representation and one task it is LSVI-UCB.

    Args:
        maps: from inputs ``(N, ...)`` of state and action to features ``(N, k)``.
        tasks: how many, ``M``.
        horizon: steps in an episode. Rewards are in [0, 1].
        beta: the radius of the confidence set of each step, in squared errors.
        ridge: of the heads, > 0.
    """

    def __init__(self, maps: Sequence[Map], tasks: int, horizon: int, beta: float, ridge: float = 1.0) -> None:
        if not maps or min(tasks, horizon) < 1 or not beta >= 0 or not ridge > 0:
            raise InputError(
                f"{len(maps)} representations, {tasks} tasks, horizon {horizon}, beta {beta}, ridge {ridge}: "
                "expected >= 1, >= 1, >= 1, >= 0, > 0"
            )
        self.maps, self.count, self.horizon, self.beta, self.ridge = list(maps), tasks, horizon, beta, ridge
        self._episodes: list[tuple[Tensor, Tensor, Tensor]] = []
        self._found: list[list[Member]] = []

    def values(self, step: int, candidates: Tensor, tasks: Tensor) -> Tensor:
        """``Q_step`` at the inputs ``(N, A, ...)`` of rows that belong to tasks ``(N,)``, ``(N, A)``."""
        left = float(self.horizon - step)
        if not self._found:
            return torch.full(candidates.shape[:2], left, dtype=torch.double)
        shape = candidates.shape[:2]
        each = [
            member.upper(phi(candidates.flatten(0, 1)).double().view(*shape, -1), tasks, self.beta)
            for phi, member in zip(self.maps, self._found[step], strict=True)
        ]
        return torch.stack(each).max(0).values.clamp(0, left)

    def choose(self, step: int, candidates: Tensor) -> Tensor:
        """The actions ``(M,)`` of each task at this step, among inputs ``(M, A, ...)``."""
        return self.values(step, candidates, torch.arange(self.count)).argmax(1)

    def learn(self, inputs: Tensor, rewards: Tensor, following: Tensor) -> None:
        """Take in an episode of every task, and fit all steps again.

        Args:
            inputs: what was played, ``(H, M, ...)``.
            rewards: ``(H, M)``.
            following: the candidates after each step, ``(H, M, A, ...)``; the last are not looked at.
        """
        if inputs.shape[:2] != (self.horizon, self.count) or rewards.shape != inputs.shape[:2]:
            raise InputError(
                f"inputs {tuple(inputs.shape)} and rewards {tuple(rewards.shape)}, expected ({self.horizon}, {self.count})"
            )
        self._episodes.append((inputs, rewards.double(), following))
        played, seen, after = (torch.stack(parts, 1) for parts in zip(*self._episodes, strict=True))  # (H, episodes, M, ...)
        owners = torch.arange(self.count).repeat(len(self._episodes))
        self._found = [[]] * self.horizon
        for step in reversed(range(self.horizon)):
            targets = seen[step].flatten()
            if step + 1 < self.horizon:
                targets = targets + self.values(step + 1, after[step].flatten(0, 1), owners).max(1).values
            features = [phi(played[step].flatten(0, 1)).double() for phi in self.maps]
            self._found[step] = members(features, owners, targets, self.count, self.ridge)


@dataclass(frozen=True)
class TabularTasks:
    """Finite tasks with the same states, actions and horizon, to check agents on: everything is known exactly.

    An input of state ``s`` and action ``a`` is ``s A + a``, of the shape ``(1,)``.

    Args:
        transitions: ``(M, S, A, S)``, probabilities.
        rewards: ``(M, S, A)``, means.
        horizon: steps in an episode, which starts in state 0.
    """

    transitions: Tensor
    rewards: Tensor
    horizon: int

    @property
    def inputs(self) -> Tensor:
        """The inputs of all states and actions, ``(S, A, 1)``."""
        states, actions = self.rewards.shape[1:]
        return torch.arange(states * actions).view(states, actions, 1)

    def values(self, policy: Tensor | None = None) -> Tensor:
        """Each task's value of the first state, ``(M,)``, of a policy ``(H, M, S)``, or of the best."""
        after = self.rewards.new_zeros(self.rewards.shape[:2])
        for step in reversed(range(self.horizon)):
            q = self.rewards + (self.transitions @ after[:, None, :, None]).squeeze(-1)
            after = q.max(2).values if policy is None else q.gather(2, policy[step][..., None]).squeeze(-1)
        return after[:, 0]

    def policy(self, agent: OptimisticValues) -> Tensor:
        """What the agent would do everywhere, ``(H, M, S)``."""
        count, states, _ = self.rewards.shape
        everywhere = self.inputs.repeat(count, 1, 1)
        owners = torch.arange(count).repeat_interleave(states)
        chosen = [agent.values(step, everywhere, owners).argmax(1).view(count, states) for step in range(self.horizon)]
        return torch.stack(chosen)


def run_episodes(agent: OptimisticValues, tasks: TabularTasks, episodes: int, generator: Generator | None = None) -> Tensor:
    """The regret of each episode and task, ``(episodes, M)``, exactly: of values, not of what was drawn."""
    regrets, best = [], tasks.values()
    each = torch.arange(len(tasks.rewards))
    for _ in range(episodes):
        policy = tasks.policy(agent)
        regrets.append(best - tasks.values(policy))
        state = torch.zeros_like(each)
        played, rewards, following = [], [], []
        for step in range(tasks.horizon):
            action = policy[step, each, state]
            played.append(tasks.inputs[state, action])
            rewards.append(tasks.rewards[each, state, action])
            state = torch.multinomial(tasks.transitions[each, state, action], 1, generator=generator)[:, 0]
            following.append(tasks.inputs[state])
        agent.learn(torch.stack(played), torch.stack(rewards), torch.stack(following))
    return torch.stack(regrets)


def bellman_error(features: Tensor, rewards: Tensor, transitions: Tensor, values: Tensor) -> float:
    """How far ``r + P v`` is from linear in the features: the largest error of the best fit, 0 in a linear MDP.

    The inherent Bellman error is the largest of these over the values ``v`` that the class can have, at the next step.

    Args:
        features: ``(S, A, k)``.
        rewards, transitions: of one task, ``(S, A)`` and ``(S, A, S)``.
        values: ``(S,)``.
    """
    target = (rewards + transitions @ values).flatten().double()
    phi = features.flatten(0, 1).double()
    error = phi @ torch.linalg.lstsq(phi, target[:, None], driver="gelsd").solution[:, 0] - target
    return float(error.abs().max())
