"""Atari: frames as Dopamine prepares them, against the emulator itself."""

import numpy as np
import pytest
import torch

from polytask.data.control import Atari, record
from polytask.data.control.atari import areas
from polytask.errors import InputError


def test_areas_take_means() -> None:
    assert np.allclose(areas(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    weights = areas(210, 84)
    assert np.allclose(weights.sum(1), 1) and np.allclose(weights.sum(0), 84 / 210, atol=1e-5)
    assert np.allclose(weights[1, 2:5], [0.2, 0.4, 0.4]) and (weights > 0).sum(1).max() == 3


def test_a_step_is_the_brighter_of_the_last_two_frames() -> None:
    ale_py = pytest.importorskip("ale_py")
    world, plain = Atari("pong"), ale_py.ALEInterface()
    plain.setFloat("repeat_action_probability", 0.0)
    plain.setInt("random_seed", 5)
    plain.loadROM(world.rom)
    plain.reset_game()
    frame = world.reset(5)
    assert frame.shape == (1, 84, 84) and frame.dtype == np.uint8 and world.actions == len(plain.getMinimalActionSet())
    for k in range(30):
        screens, action = [], plain.getMinimalActionSet()[k % world.actions]
        reward = 0.0
        for _ in range(4):
            reward += plain.act(action)
            screens.append(plain.getScreenGrayscale())
        step = world.step(k % world.actions)
        brighter = torch.from_numpy(np.maximum(screens[2], screens[3])).float()[None, None]
        # By another way: repeat each pixel until the areas are whole, then take means.
        large = brighter.repeat_interleave(2, 2).repeat_interleave(21, 3)
        wanted = torch.nn.functional.avg_pool2d(large, (5, 40))[0]
        assert step.reward == reward
        assert float((torch.from_numpy(step.frame).float() - wanted).abs().max()) <= 0.51


def test_a_few_hundred_frames_are_transitions() -> None:
    pytest.importorskip("ale_py")
    transitions = record(Atari("breakout", limit=400), 110, seed=1)
    batch = transitions.batch(torch.tensor([0, 50]))
    assert batch.observation.shape == (2, 4, 84, 84) and batch.observation.dtype == torch.uint8
    assert not batch.observation[0, :3].any() and batch.observation[0, 3].any()
    assert int(transitions.cut.sum()) == 2 and len(transitions) == 110  # cut off after 100 steps, and at the end
    assert torch.equal(record(Atari("breakout", limit=400), 110, seed=1).frames, transitions.frames)


def test_what_there_is_not() -> None:
    pytest.importorskip("ale_py")
    with pytest.raises(InputError, match="unknown Atari game 'pogn': did you mean 'pong'"):
        Atari("pogn")
    with pytest.raises(InputError, match="skip 0"):
        Atari("pong", skip=0)
