"""Environments: what is seen, the same again by the same seed, and what there is not."""

import sys

import numpy as np
import pytest

from polytask.data.control import Environment, environment
from polytask.errors import InputError, MissingExtra


def run(world: Environment, seed: int, steps: int = 40) -> list[tuple[float, bool, bytes]]:
    world.reset(seed)
    found = []
    for k in range(steps):
        step = world.step(k % world.actions)
        found.append((step.reward, step.done, step.frame.tobytes()))
        if step.done or step.cut:
            world.reset()
    return found


@pytest.mark.parametrize("game", ["asterix", "breakout", "freeway", "seaquest", "space_invaders"])
def test_minatar(game: str) -> None:
    pytest.importorskip("minatar")
    world = environment(f"minatar/{game}")
    frame = world.reset(0)
    assert frame.shape[1:] == (10, 10) and frame.dtype == np.uint8 and set(np.unique(frame)) == {0, 1}
    assert run(world, 3) == run(environment(f"minatar/{game}"), 3) == run(world, 3)
    assert 2 < world.actions <= 6 and environment(f"minatar/{game}", minimal=False).actions == 6


def test_a_limit_cuts_episodes_off() -> None:
    pytest.importorskip("minatar")
    world = environment("minatar/freeway", limit=5)
    world.reset(0)
    assert [world.step(0).cut for _ in range(5)] == [False] * 4 + [True]


def test_gymnasium() -> None:
    pytest.importorskip("gymnasium")
    pole = environment("CartPole-v1")
    assert pole.reset(0).shape == (4,) and pole.actions == 2 and run(pole, 1) == run(pole, 1)
    lake = environment("FrozenLake-v1", is_slippery=False)
    assert lake.reset(0).tolist() == [0] and lake.step(1).frame.tolist() == [4]
    short = environment("CartPole-v1", max_episode_steps=3)
    short.reset(0)
    assert [short.step(k % 2).cut for k in range(3)] == [False, False, True]


def test_unknown_games_are_named() -> None:
    pytest.importorskip("gymnasium")
    with pytest.raises(InputError, match="unknown MinAtar game 'brekout': did you mean 'breakout'"):
        environment("minatar/brekout")
    with pytest.raises(InputError, match="'CartPol-v1' cannot be made") as found:
        environment("CartPol-v1")
    assert "\n" not in str(found.value)
    with pytest.raises(InputError, match="actions Box"):
        environment("Pendulum-v1")


@pytest.mark.parametrize(
    ("name", "package"), [("minatar/breakout", "minatar"), ("atari/pong", "ale_py"), ("x", "gymnasium")]
)
def test_a_missing_extra_says_what_to_install(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"'{package}': pip install 'polytask\[control\]'"):
        environment(name)
