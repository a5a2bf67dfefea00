"""Acting: what is recorded is what happened, and returns are those of the environment."""

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.data.control import Step, epsilon_greedy, play, record
from polytask.data.control.environments import Frame
from polytask.errors import InputError


class Count:
    """Counts its steps and those of all episodes; an action 1 pays 1. Done after ``length`` steps, or cut off there."""

    name, actions = "count", 2

    def __init__(self, length: int, cut: bool = False, stack: int = 1) -> None:
        self.length, self.cut, self.stack, self.seeds = length, cut, stack, [0] * 0

    def reset(self, seed: int | None = None) -> Frame:
        self.seeds += [] if seed is None else [seed]
        self.at = 0
        return np.array([0], dtype=np.uint8)

    def step(self, action: int) -> Step:
        self.at += 1
        over = self.at == self.length
        return Step(np.array([self.at], dtype=np.uint8), float(action), over and not self.cut, over and self.cut)


def ones(observations: Tensor) -> Tensor:
    return torch.ones(len(observations), dtype=torch.int64)


@pytest.mark.parametrize(("cut", "rows"), [(False, [0, 1, 2, 0, 1, 2, 0, 1]), (True, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1])])
def test_a_record_has_all_episodes(cut: bool, rows: list[int]) -> None:
    found = record(Count(3, cut), 7, ones)
    assert len(found) == 7 and found.frames.flatten().tolist() == rows
    batch = found.batch(torch.arange(7))
    assert batch.observation.flatten().tolist() == [0, 1, 2, 0, 1, 2, 0] and batch.reward.sum() == 7
    assert batch.done.tolist() == [not cut and k % 3 == 2 for k in range(7)]
    assert bool((batch.next.flatten() == batch.observation.flatten() + 1)[~batch.done].all())


def test_a_policy_sees_the_stack_that_the_record_has() -> None:
    seen: list[Tensor] = []

    def policy(observations: Tensor) -> Tensor:
        seen.append(observations[0].clone())
        return ones(observations)

    found = record(Count(4, stack=3), 9, policy)
    assert torch.equal(found.batch(torch.arange(9)).observation, torch.stack(seen))


def test_random_actions_go_by_the_seed() -> None:
    once, again, other = (record(Count(5), 64, seed=seed).action for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other) and set(once.tolist()) == {0, 1}


def test_play_gives_each_environment_one_episode() -> None:
    worlds = [Count(length) for length in (2, 5, 3)]
    assert play(worlds, ones, seed=7).tolist() == [2, 5, 3] and [world.seeds for world in worlds] == [[7], [8], [9]]
    assert play(worlds, ones, limit=3).tolist() == [2, 3, 3]


def test_epsilon_greedy() -> None:
    def values(observations: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0, 0.0]).expand(len(observations), 3)

    many = torch.zeros(3000, 1)
    assert bool((epsilon_greedy(values, 0.0)(many) == 1).all())
    share = float((epsilon_greedy(values, 0.3)(many) != 1).float().mean())
    assert abs(share - 0.2) < 0.03
    with pytest.raises(InputError, match=r"epsilon 1\.5"):
        epsilon_greedy(values, 1.5)
    with pytest.raises(InputError, match="count: 0 steps"):
        record(Count(3), 0)
