"""Rounds of contextual bandits, one decision for each task in each, and players beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from polytask.errors import InputError


class Player(Protocol):
    """Chooses an action for every task, and learns from what came of it; every agent of this paper is one."""

    def choose(self, candidates: Tensor) -> Tensor:
        """The actions ``(M,)`` among each task's candidates, ``(M, A, ...)``: inputs of context and action."""
        ...

    def learn(self, inputs: Tensor, rewards: Tensor) -> None:
        """Take in what was played, one input ``(M, ...)`` and reward ``(M,)`` for each task; NaN where none was seen."""
        ...


class Round(NamedTuple):
    """What tasks face in one round: candidates ``(M, A, ...)``, their mean rewards ``(M, A)``, and noise ``(M,)``."""

    candidates: Tensor
    means: Tensor
    noise: Tensor

    def only(self, tasks: slice) -> Round:
        """The same round for some of the tasks."""
        return Round(self.candidates[tasks], self.means[tasks], self.noise[tasks])


def play(player: Player, rounds: Iterable[Round]) -> Tensor:
    """The regret of each round and task, ``(T, M)``: how far the chosen action's mean reward is below the best one's.

    Noise is only in the rewards that the player sees. Players of the same rounds face the same contexts and noise.
    """
    regrets = []
    for candidates, means, noise in rounds:
        tasks = torch.arange(len(means))
        actions = player.choose(candidates)
        mean = means[tasks, actions]
        player.learn(candidates[tasks, actions], mean + noise)
        regrets.append(means.max(1).values - mean)
    return torch.stack(regrets)


class Independent:
    """A player for each task by itself: each has one task, and learns nothing from the others."""

    def __init__(self, players: Sequence[Player]) -> None:
        if not players:
            raise InputError("no players, expected one for each task")
        self.players = list(players)

    def choose(self, candidates: Tensor) -> Tensor:
        return torch.cat([p.choose(own[None]) for p, own in zip(self.players, candidates, strict=True)])

    def learn(self, inputs: Tensor, rewards: Tensor) -> None:
        for i, player in enumerate(self.players):
            player.learn(inputs[i : i + 1], rewards[i : i + 1])
