"""Environments: one small interface, and MinAtar's games and gymnasium's environments behind it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from polytask.errors import InputError, optional, suggest

Frame = NDArray[Any]

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
"""MinAtar's."""


class Step(NamedTuple):
    """What came of an action.

    Attributes:
        frame: ``(C, ...)`` what is seen next.
        reward: of this step.
        done: the episode ended, nothing is to come.
        cut: the episode was cut off, as by a limit of time.
    """

    frame: Frame
    reward: float
    done: bool
    cut: bool = False


class Environment(Protocol):
    """What agents act in.

    Attributes:
        name: what to call it in errors.
        actions: how many there are; they are numbered from 0.
        stack: frames that make an observation, joined along their first dimension.
    """

    name: str
    actions: int
    stack: int

    def reset(self, seed: int | None = None) -> Frame:
        """Begin an episode; its first frame. A seed begins a new sequence of episodes."""
        ...

    def step(self, action: int) -> Step:
        """Act."""
        ...


class MinAtar:
    """A game of MinAtar (Young and Tian, 2019): 10 x 10 cells, a channel for each kind of thing, uint8 0 or 1.

    Args:
        game: one of `GAMES`.
        sticky: the chance that the last action is repeated in the place of the one asked for.
        ramping: whether games get harder as an episode goes on.
        minimal: leave out actions that do nothing in this game; otherwise there are six.
        limit: steps after which an episode is cut off; ``None`` never does.

    Raises:
        InputError: an unknown game.
        MissingExtra: without the package ``minatar``.
    """

    stack = 1

    def __init__(
        self, game: str, sticky: float = 0.1, ramping: bool = True, minimal: bool = True, limit: int | None = None
    ) -> None:
        if game not in GAMES:
            raise InputError(f"unknown MinAtar game {game!r}: {suggest(game, GAMES)}")
        minatar = optional("minatar", "control")
        self.name, self.limit, self.taken = f"minatar/{game}", limit, 0
        self.game = minatar.Environment(game, sticky_action_prob=sticky, difficulty_ramping=ramping)
        self.numbers = self.game.minimal_action_set() if minimal else list(range(self.game.num_actions()))
        self.actions = len(self.numbers)

    def reset(self, seed: int | None = None) -> Frame:
        self.game.seed(seed)
        self.game.last_action = self.taken = 0
        self.game.reset()
        return self._frame()

    def step(self, action: int) -> Step:
        reward, done = self.game.act(self.numbers[action])
        self.taken += 1
        return Step(self._frame(), float(reward), bool(done), not done and self.taken == self.limit)

    def _frame(self) -> Frame:
        return np.ascontiguousarray(self.game.state().transpose(2, 0, 1), dtype=np.uint8)


class Gymnasium:
    """An environment of ``gymnasium`` with discrete actions and an array as its observation.

    A number for a state becomes an array of one number. Images keep their dtype, and should have their channels first.

    Args:
        environment: its id, or the environment itself, wrapped as wanted.
        stack: frames that make an observation.
        settings: of ``gymnasium.make``.

    Raises:
        InputError: an id that there is not, or actions or observations of another kind.
        MissingExtra: without the package ``gymnasium``.
    """

    def __init__(self, environment: Any, stack: int = 1, **settings: Any) -> None:
        gymnasium = optional("gymnasium", "control")
        self.stack = stack
        if isinstance(environment, str):
            try:
                environment = gymnasium.make(environment, **settings)
            except (gymnasium.error.Error, ModuleNotFoundError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"gymnasium environment {environment!r} cannot be made: {reason}") from error
        self.inner = environment
        self.name = environment.spec.id if environment.spec else type(environment).__name__
        space, seen = environment.action_space, environment.observation_space
        if not hasattr(space, "n") or getattr(space, "start", 0) != 0:
            raise InputError(f"{self.name}: actions {space}, expected discrete ones that are numbered from 0")
        if seen.shape is None or seen.dtype is None:
            raise InputError(f"{self.name}: observations {seen}, expected an array")
        self.actions = int(space.n)

    def reset(self, seed: int | None = None) -> Frame:
        frame, _ = self.inner.reset(seed=seed)
        return np.atleast_1d(np.asarray(frame)).copy()

    def step(self, action: int) -> Step:
        frame, reward, done, cut, _ = self.inner.step(action)
        return Step(np.atleast_1d(np.asarray(frame)).copy(), float(reward), bool(done), bool(cut) and not done)


def environment(name: str, **settings: Any) -> Environment:
    """``"minatar/GAME"``, ``"atari/GAME"``, or an id of gymnasium; ``settings`` are the class's own.

    Raises:
        InputError: naming the game or the environment that there is not.
        MissingExtra: naming the package that is missing, and what to install.
    """
    from polytask.data.control.atari import Atari

    kind, _, game = name.partition("/")
    if kind == "minatar":
        return MinAtar(game, **settings)
    return Atari(game, **settings) if kind == "atari" else Gymnasium(name, **settings)
