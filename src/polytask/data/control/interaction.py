"""A stream of batches that come from acting while training goes on: the policy that acts is the one that learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from polytask.data.control.environments import Environment
from polytask.data.control.play import Playing, Policy
from polytask.data.control.transitions import Transition, several_steps
from polytask.errors import InputError


class Replay:
    """The last transitions, in a ring of rows; draws some, uniformly.

    Args:
        capacity: rows, at least 2; an episode that is cut off takes one more than it has transitions.
        like: an observation: its shape and dtype.
        actions: how many there are.
    """

    def __init__(self, capacity: int, like: Tensor, actions: int) -> None:
        if capacity < 2:
            raise InputError(f"a replay of {capacity} rows, expected at least 2")
        self.observation = torch.empty(capacity, *like.shape, dtype=like.dtype)
        self.action, self.reward = torch.zeros(capacity, dtype=torch.int64), torch.zeros(capacity)
        self.done, self.cut = torch.zeros(capacity, dtype=torch.bool), torch.ones(capacity, dtype=torch.bool)
        self.actions, self.head, self.filled = actions, 0, 0

    def begin(self, observation: Tensor) -> None:
        """The first observation of an episode."""
        self._put(observation)

    def add(self, action: int, reward: float, done: bool, following: Tensor) -> None:
        """What came of an action in the last observation."""
        row = self.head - 1
        self.action[row], self.reward[row], self.done[row], self.cut[row] = action, reward, done, False
        if not done:
            self._put(following)

    def _put(self, observation: Tensor) -> None:
        self.observation[self.head] = observation
        self.done[self.head], self.cut[self.head] = False, True
        self.head = (self.head + 1) % len(self.cut)
        self.filled = min(self.filled + 1, len(self.cut))

    def draw(self, count: int, steps: int, gamma: float, generator: torch.Generator) -> Transition:
        """``count`` transitions, each uniform among all, of up to ``steps`` steps."""
        rows = torch.randint(self.filled, (count,), generator=generator)
        while bool((again := self.cut[rows]).any()):
            rows[again] = torch.randint(self.filled, (int(again.sum()),), generator=generator)
        reward, last, taken = several_steps(rows, steps, gamma, self.reward, self.done, self.cut)
        following = self.observation[(last + 1) % len(self.cut)]
        return Transition(self.observation[rows], self.action[rows], reward, following, self.done[last], taken)


class Interaction:
    """A stream of `Transition` that acts: ``every`` steps in the environment, then a batch from the replay.

    It is one epoch long. It cannot be asked for the same batches again: a run that goes on from a checkpoint begins with an
    empty replay.

    Args:
        environment: where to act.
        policy: called with one observation ``(1, ...)``, encoded.
        interactions: steps in the environment, those before the first batch not counted.
        encode: what the replay keeps of observations ``(1, ...)``, such as frozen features; they themselves by default.
        batch_size: transitions in a batch.
        every: steps in the environment for each batch.
        start: steps in the environment before the first batch.
        capacity: of the replay.
        steps, gamma: of the transitions.
        seed: of the environment and of the draws.

    Attributes:
        returns: of the episodes that are over, in order.
    """

    def __init__(
        self,
        environment: Environment,
        policy: Policy,
        interactions: int,
        encode: Callable[[Tensor], Tensor] | None = None,
        *,
        batch_size: int = 32,
        every: int = 4,
        start: int = 2000,
        capacity: int = 1_000_000,
        steps: int = 5,
        gamma: float = 0.99,
        seed: int = 0,
    ) -> None:
        if min(batch_size, every, start, steps) < 1 or interactions < every:
            raise InputError(
                f"batch size {batch_size}, every {every}, start {start}, steps {steps}, interactions {interactions}: "
                f"expected at least 1 each, and {every} interactions"
            )
        self.environment, self.policy, self.encode = environment, policy, encode or (lambda observations: observations)
        self.interactions, self.batch_size, self.every, self.start = interactions, batch_size, every, start
        self.capacity, self.steps, self.gamma, self.seed = capacity, steps, gamma, seed
        self.returns: list[float] = []

    def __len__(self) -> int:
        return self.interactions // self.every

    def epoch(self, number: int, skip: int = 0) -> Iterator[Transition]:
        """Act, and yield batches; ``skip`` leaves out so many of them, and what would have been done for them."""
        acting, generator = self._acting(number), torch.Generator().manual_seed(self.seed + number)
        replay = next(acting)
        for _ in range(self.start):
            next(acting)
        for _ in range(skip, len(self)):
            for _ in range(self.every):
                next(acting)
            yield replay.draw(self.batch_size, self.steps, self.gamma, generator)

    def _acting(self, number: int) -> Iterator[Replay]:
        playing = Playing(self.environment, self.seed + number)
        seen = self._encoded(playing)
        replay = Replay(min(self.capacity, 2 * (self.interactions + self.start) + 2), seen[0], self.environment.actions)
        replay.begin(seen[0])
        total = 0.0
        while True:
            yield replay
            action = int(self.policy(seen))
            reward, done, cut = playing.act(action)
            total += reward
            following = self._encoded(playing)
            replay.add(action, reward, done, following[0])
            if done or cut:
                self.returns.append(total)
                total = 0.0
                playing.begin()
                following = self._encoded(playing)
                replay.begin(following[0])
            seen = following

    @torch.no_grad()
    def _encoded(self, playing: Playing) -> Tensor:
        return self.encode(torch.from_numpy(playing.observation)[None])
