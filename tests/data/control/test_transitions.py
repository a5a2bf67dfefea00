"""Transitions: stacks, several steps and parts of episodes against loops; batches as a function of seed and epoch."""

from dataclasses import replace

import pytest
import torch

from polytask.data.control import TransitionBatches, Transitions
from polytask.errors import InputError

GAMMA = 0.5


def episodes(stack: int = 1) -> Transitions:
    """One of three transitions that is done, one of two that is cut off, one of a single transition that is done."""
    return Transitions(
        "three",
        torch.arange(1, 8).view(7, 1, 1, 1).to(torch.uint8),
        torch.tensor([0, 1, 0, 1, 1, 0, 0]),
        torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 0.0, 32.0]),
        done=torch.tensor([0, 0, 1, 0, 0, 0, 1]).bool(),
        cut=torch.tensor([0, 0, 0, 0, 0, 1, 0]).bool(),
        actions=2,
        stack=stack,
    )


def test_one_step() -> None:
    batch = episodes().batch(torch.arange(6))
    assert len(episodes()) == 6 and batch.observation.dtype == torch.uint8
    assert batch.observation.flatten().tolist() == [1, 2, 3, 4, 5, 7]
    assert batch.done.tolist() == [False, False, True, False, False, True]
    assert batch.next.flatten()[~batch.done].tolist() == [2, 3, 5, 6]
    assert batch.discount(GAMMA).tolist() == [0.5, 0.5, 0, 0.5, 0.5, 0]


def test_several_steps_end_with_the_episode() -> None:
    batch = episodes().batch(torch.arange(6), steps=2, gamma=GAMMA)
    assert batch.reward.tolist() == [1 + 1, 2 + 2, 4, 8 + 8, 16, 32]
    assert batch.steps.tolist() == [2, 2, 1, 2, 1, 1]
    assert batch.done.tolist() == [False, True, True, False, False, True]
    assert batch.next.flatten()[~batch.done].tolist() == [3, 6, 6]
    assert batch.discount(GAMMA).tolist() == [0.25, 0, 0, 0.25, 0.5, 0]


def test_stacks_begin_with_nothing() -> None:
    batch = episodes(stack=3).batch(torch.tensor([0, 2, 3, 5]))
    assert batch.observation[:, :, 0, 0].tolist() == [[0, 0, 1], [1, 2, 3], [0, 0, 4], [0, 0, 7]]
    assert batch.next[2, :, 0, 0].tolist() == [0, 4, 5]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_the_first_are_the_same(count: int) -> None:
    part, index = episodes().head(count), torch.arange(count)
    assert len(part) == count
    found, wanted = part.batch(index), episodes().batch(index)
    for name, a, b in zip(found._fields, found, wanted, strict=True):
        ended = wanted.done if name == "next" else torch.zeros(count, dtype=torch.bool)
        assert torch.equal(a[~ended], b[~ended]), name


def test_an_epoch_has_each_once_and_repeats() -> None:
    stream = TransitionBatches(episodes(), 2, seed=3)
    seen = [batch.observation.flatten().tolist() for batch in stream.epoch(1)]
    assert sorted(value for batch in seen for value in batch) == [1, 2, 3, 4, 5, 7] and len(stream) == 3
    assert [batch.observation.flatten().tolist() for batch in stream.epoch(1, skip=1)] == seen[1:]
    halves = [TransitionBatches(episodes(), 2, 3, rank=rank, world=2) for rank in (0, 1)]
    shared = [[batch.observation.flatten().tolist() for batch in half.epoch(1)] for half in halves]
    assert [a + b for a, b in zip(*shared, strict=True)] == seen


def test_what_cannot_be_is_named_by_its_row() -> None:
    whole = episodes()
    with pytest.raises(InputError, match=r"three: row 2: action 2, expected 0 to 1"):
        replace(whole, action=torch.tensor([0, 2, 0, 1, 1, 0, 0]))
    with pytest.raises(InputError, match=r"three: row 4: reward nan"):
        replace(whole, reward=torch.tensor([0, 0, 0, torch.nan, 0, 0, 0]))
    with pytest.raises(InputError, match=r"three: row 7: a transition without a next frame"):
        replace(whole, done=torch.zeros(7, dtype=torch.bool))
    with pytest.raises(InputError, match=r"rewards \(2,\) for 7 frames"):
        replace(whole, reward=torch.zeros(2))
    with pytest.raises(InputError, match="first 7 transitions, expected 1 to 6"):
        whole.head(7)
    with pytest.raises(InputError, match="batch size 9"):
        TransitionBatches(whole, 9)
