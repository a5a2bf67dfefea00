import pytest
import torch

from polytask.data.stream import Stream
from polytask.data.temporal import EventBatches, Events, split_events
from polytask.errors import InputError


def stream(count: int = 103) -> Events:
    source, destination = torch.randint(12, (2, count), generator=torch.Generator().manual_seed(0))
    features = torch.arange(count).float()[:, None]
    return Events("stream", source, destination, torch.arange(count) // 3, features, nodes=12)


def test_batches_are_all_events_in_order() -> None:
    events = stream()
    batches = EventBatches(events, 10)
    assert isinstance(batches, Stream) and len(batches) == 11
    seen = list(batches.epoch(0))
    assert [len(batch) for batch in seen] == [10] * 10 + [3]
    assert torch.equal(torch.cat([batch.source for batch in seen]), events.source)
    assert torch.equal(torch.cat([batch.features for batch in seen]), events.features)
    time = torch.cat([batch.time for batch in seen])
    assert bool((time.diff() >= 0).all()) and time.dtype == torch.float64
    assert [batch.position for batch in seen[:3]] == [0, 10, 20]
    assert [batch.begins for batch in seen[:3]] == [True, False, False]


def test_an_epoch_is_a_function_of_seed_and_number_wherever_it_starts() -> None:
    def negatives(number: int, skip: int = 0, seed: int = 0) -> list[list[int]]:
        return [batch.negative.tolist() for batch in EventBatches(stream(), 10, seed=seed).epoch(number, skip)]

    assert negatives(1) == negatives(1) and negatives(1)[4:] == negatives(1, 4)
    assert negatives(1) != negatives(2) and negatives(1) != negatives(1, seed=1)


def test_a_part_goes_on_from_the_parts_before_it() -> None:
    split = split_events(stream())
    first = next(iter(split.batches("test", 7, negatives="historical").epoch(0)))
    assert first.position == len(split.train) + len(split.validation) and not first.begins
    assert first.negative_source is not None
    known = set(Events.joined([split.train, split.validation]).pairs.tolist())
    assert set((first.negative_source * 12 + first.negative).tolist()) <= known - set(split.test.pairs[:7].tolist())


def test_a_past_that_comes_later_and_empty_streams_are_refused() -> None:
    events = stream()
    with pytest.raises(InputError, match=r"stream: row 1: time 0\.0 before the end of the past, 34\.0 in row 103"):
        EventBatches(events[:10], 5, past=events[50:])
    with pytest.raises(InputError, match="0 events in batches of 5"):
        EventBatches(events[:0], 5)
    with pytest.raises(InputError, match="103 events in batches of 0"):
        EventBatches(events, 0)


def test_a_stream_may_go_on_from_events_that_are_not_at_hand() -> None:
    events = stream()
    batches = EventBatches(events, 10, before=200, destinations=torch.tensor([3, 5]))
    seen = list(batches.epoch(0))
    assert [batch.position for batch in seen[:2]] == [200, 210] and not seen[0].begins
    assert torch.cat([batch.negative for batch in seen]).unique().tolist() == [3, 5]
