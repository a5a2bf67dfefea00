import os
from pathlib import Path

import numpy as np
import pytest
import torch

from polytask.data.temporal import Events, hide_nodes, load_events, split_events
from polytask.errors import InputError


def stream(count: int = 200, nodes: int = 30, seed: int = 0) -> Events:
    key = torch.Generator().manual_seed(seed)
    source, destination = torch.randint(nodes, (2, count), generator=key)
    return Events("stream", source, destination, torch.randint(90, (count,), generator=key).sort().values, nodes=nodes)


def test_a_split_goes_by_quantiles_of_time_and_divides_no_moment() -> None:
    events = stream()
    split = split_events(events)
    low, high = np.quantile(events.time.numpy(), [0.70, 0.85])
    time = events.time.numpy()
    expected = [(time <= low).sum(), ((time > low) & (time <= high)).sum(), (time > high).sum()]
    assert [len(split.train), len(split.validation), len(split.test)] == expected
    assert split.train.time[-1] < split.validation.time[0] and split.validation.time[-1] < split.test.time[0]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("wikipedia", (110_232, 23_621, 23_621)),
        ("uci_collegemsg", (41_884, 8_975, 8_976)),
        ("enron", (87_664, 18_786, 18_785)),
    ],
)
def test_the_public_streams_split_as_published(name: str, sizes: tuple[int, int, int]) -> None:
    path = Path(os.environ.get("POLYTASK_DATA", "")) / "temporal_graphs" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"temporal_graphs/{name}.npz: not in the folder that POLYTASK_DATA names")
    split = split_events(load_events(path))
    assert (len(split.train), len(split.validation), len(split.test)) == sizes


def test_hidden_nodes_are_met_in_the_test_alone() -> None:
    split = split_events(stream())
    inductive = hide_nodes(split, 0.2, seed=3)
    assert inductive.hidden is not None and len(inductive.hidden) == 6
    for part in (inductive.train, inductive.validation):
        assert not part.touches(inductive.hidden).any()
    assert inductive.test.touches(inductive.hidden).all()
    for name in ("train", "validation"):
        whole, part = getattr(split, name), getattr(inductive, name)
        assert len(part) == len(whole) - int(whole.touches(inductive.hidden).sum())
    again, other = hide_nodes(split, 0.2, seed=3), hide_nodes(split, 0.2, seed=4)
    assert torch.equal(again.test.rows, inductive.test.rows) and not torch.equal(other.test.rows, inductive.test.rows)


def test_empty_parts_are_refused() -> None:
    moment = Events("moment", torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]), torch.zeros(3))
    with pytest.raises(InputError, match="moment: 3 events split by time make 3 for train, 0 for validation, 0 for test"):
        split_events(moment)
    with pytest.raises(InputError, match=r"0\.02 of 30 nodes are 0 to hide"):
        hide_nodes(split_events(stream()), 0.02)
    with pytest.raises(InputError, match="no events are left for train"):
        hide_nodes(split_events(stream()), 0.99)
    with pytest.raises(InputError, match="sum below 1"):
        split_events(stream(), 0.5, 0.5)
    with pytest.raises(InputError, match="did you mean 'test'"):
        split_events(stream()).batches("tests")
