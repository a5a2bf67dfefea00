"""Atari's games by ``ale-py``, whose package has them, prepared as Dopamine does (Castro et al., 2018)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polytask.data.control.environments import Frame, Step
from polytask.errors import InputError, optional, suggest


class Atari:
    """A game of the Arcade Learning Environment: frames ``(1, size, size)`` uint8, grey, four to an observation.

    An action is held for ``skip`` frames of the game; what is seen is the brighter of the last two in each pixel, made
    smaller by the mean over areas. Episodes end with the game, not with a life.

    Args:
        game: such as ``"pong"``; ``ale_py.roms`` has them.
        skip: frames of the game in a step.
        sticky: the chance in each frame of the game that its last action goes on. 0 makes a game without chance; Machado et
            al., *Revisiting the Arcade Learning Environment*, 2018, ask for 0.25.
        limit: frames of the game after which an episode is cut off; 108,000 are half an hour.
        size: pixels in height and width.
        stack: frames that make an observation.
        minimal: leave out actions that do nothing in this game; otherwise there are 18.

    Raises:
        InputError: an unknown game.
        MissingExtra: without the package ``ale-py``.
    """

    def __init__(
        self,
        game: str,
        skip: int = 4,
        sticky: float = 0.0,
        limit: int = 108_000,
        size: int = 84,
        stack: int = 4,
        minimal: bool = True,
    ) -> None:
        ale_py, roms = optional("ale_py", "control"), optional("ale_py.roms", "control")
        known = roms.get_all_rom_ids()
        if game not in known:
            raise InputError(f"unknown Atari game {game!r}: {suggest(game, known)}")
        if min(skip, limit, size, stack) < 1:
            raise InputError(f"skip {skip}, limit {limit}, size {size}, stack {stack}: expected at least 1")
        self.name, self.skip, self.stack, self.size = f"atari/{game}", skip, stack, size
        self.rom = str(roms.get_rom_path(game))
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", sticky)
        self.ale.setInt("max_num_frames_per_episode", limit)
        self.ale.loadROM(self.rom)
        self.numbers = self.ale.getMinimalActionSet() if minimal else self.ale.getLegalActionSet()
        self.actions = len(self.numbers)
        height, width = self.ale.getScreenDims()
        self.screens = np.zeros((2, height, width), dtype=np.uint8)
        self.rows, self.columns = areas(height, size), areas(width, size)

    def reset(self, seed: int | None = None) -> Frame:
        if seed is not None:
            self.ale.setInt("random_seed", seed % 2**31)
            self.ale.loadROM(self.rom)  # a seed counts from the next loading on
        self.ale.reset_game()
        self.screens[1] = 0
        self.ale.getScreenGrayscale(self.screens[0])
        return self._frame()

    def step(self, action: int) -> Step:
        reward = 0.0
        for k in range(self.skip):
            reward += self.ale.act(self.numbers[action])
            if self.ale.game_over():
                break
            if k >= self.skip - 2:
                self.ale.getScreenGrayscale(self.screens[k - max(self.skip - 2, 0)])
        cut = bool(self.ale.game_truncated())
        return Step(self._frame(), reward, bool(self.ale.game_over()) and not cut, cut)

    def _frame(self) -> Frame:
        small = self.rows @ self.screens.max(0).astype(np.float32) @ self.columns.T
        frame: Frame = np.rint(small).astype(np.uint8)[None]
        return frame


def areas(before: int, after: int) -> NDArray[np.float32]:
    """``(after, before)``: each row takes the mean over its equal part of ``before`` pixels, of which some count in part.

    >>> areas(4, 2).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    edges = np.linspace(0, before, after + 1)
    pixels = np.arange(before)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares: NDArray[np.float32] = (np.clip(covered, 0, None) * after / before).astype(np.float32)
    return shares
