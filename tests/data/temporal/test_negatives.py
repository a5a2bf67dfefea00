import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.data.temporal import Events, Negatives
from polytask.errors import InputError


def stream(count: int, nodes: int, seed: int) -> Events:
    source, destination = torch.randint(nodes, (2, count), generator=torch.Generator().manual_seed(seed))
    return Events("stream", source, destination, torch.arange(count), nodes=nodes)


def pairs_of(events: Events) -> set[tuple[int, int]]:
    return set(zip(events.source.tolist(), events.destination.tolist(), strict=True))


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.integers(0, 40), st.integers(1, 12), st.booleans(), st.integers(0, 99))
def test_old_pairs_are_those_of_the_definition(nodes: int, start: int, size: int, inductive: bool, seed: int) -> None:
    whole = stream(60, nodes, seed)
    past, events = whole[:20], whole[20:]
    stop = min(start + size, 40)
    old = pairs_of(whole[: 20 + start]) - pairs_of(events[start:stop])
    if inductive:
        old -= pairs_of(past)
    negatives = Negatives(events, past, kind="inductive" if inductive else "historical")
    source, destination = negatives.draw(start, stop, torch.Generator().manual_seed(seed))
    assert source is not None
    drawn = list(zip(source.tolist(), destination.tolist(), strict=True))
    count = min(len(old), stop - start)
    assert set(drawn[:count]) <= old and len(set(drawn[:count])) == count
    assert source[count:].tolist() == events.source[start:stop][count:].tolist()
    assert set(destination[count:].tolist()) <= set(whole.destination.tolist())


def test_old_pairs_are_uniform() -> None:
    events, key = stream(60, 4, 1), torch.Generator().manual_seed(0)
    old = sorted(pairs_of(events[:50]) - pairs_of(events[50:53]))
    counts = dict.fromkeys(old, 0)
    negatives = Negatives(events, kind="historical")
    for _ in range(1000):
        source, destination = negatives.draw(50, 53, key)
        assert source is not None
        for pair in zip(source.tolist(), destination.tolist(), strict=True):
            counts[pair] += 1
    expected = 3000 / len(old)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_random_destinations_are_those_seen_so_far() -> None:
    whole = stream(40, 50, 2)
    negatives = Negatives(whole[10:20], whole[:10])
    drawn = torch.cat([negatives.draw(0, 10, torch.Generator().manual_seed(seed))[1] for seed in range(60)])
    assert set(drawn.tolist()) == set(whole[:20].destination.tolist())
    assert negatives.draw(0, 10, torch.Generator())[0] is None


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'historical'"):
        Negatives(stream(3, 3, 0), kind="historic")
