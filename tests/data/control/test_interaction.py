"""A replay in a ring, and a stream that acts."""

import pytest
import torch
from tests.data.control.test_play import Count, ones

from polytask.data.control import Interaction, Replay
from polytask.errors import InputError


@pytest.mark.parametrize("length", [1, 3, 50])
def test_what_is_drawn_happened(length: int) -> None:
    """Observation ``t`` pays ``t`` and leads to ``t + 1``; every ``length``-th transition is done."""
    replay, key = Replay(16, torch.zeros(1), 1), torch.Generator().manual_seed(0)
    replay.begin(torch.zeros(1))
    for t in range(100):
        done = t % length == length - 1
        replay.add(0, float(t), done, torch.tensor([t + 1.0]))
        if done:
            replay.begin(torch.tensor([t + 1.0]))
        batch = replay.draw(64, 3, 1.0, key)
        start, steps = batch.observation[:, 0], batch.steps
        assert bool((start >= t - 15).all() & (start <= t).all())
        assert torch.equal(batch.reward, steps * start + steps * (steps - 1) / 2)
        assert bool((batch.next[:, 0] == start + steps)[~batch.done].all())
        last = start + steps - 1
        assert torch.equal(batch.done, last % length == length - 1)
        assert bool(((steps == 3) | batch.done | (last == t)).all())
    seen = torch.unique(replay.draw(2000, 1, 1.0, key).observation)
    assert len(seen) in (15, 16)


def test_a_cut_off_episode_leads_to_its_last_frame() -> None:
    replay = Replay(8, torch.zeros(1), 1)
    replay.begin(torch.tensor([1.0]))
    replay.add(0, 1.0, False, torch.tensor([2.0]))
    replay.begin(torch.tensor([9.0]))
    batch = replay.draw(4, 5, 1.0, torch.Generator().manual_seed(0))
    assert batch.next.flatten().tolist() == [2.0] * 4 and not batch.done.any() and batch.steps.tolist() == [1] * 4


def test_a_stream_acts_before_each_batch() -> None:
    stream = Interaction(Count(4), ones, 40, lambda seen: seen.float() * 2, batch_size=8, every=4, start=6, steps=2)
    batches = list(stream.epoch(0))
    assert len(batches) == len(stream) == 10 and len(stream.returns) == 46 // 4 and set(stream.returns) == {4.0}
    assert all(set(batch.observation.flatten().tolist()) <= {0, 2, 4, 6} for batch in batches)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="interactions 3"):
        Interaction(Count(4), ones, 3)
    with pytest.raises(InputError, match="1 rows"):
        Replay(1, torch.zeros(1), 2)
