import pytest
import torch
from torch import Tensor

from polytask.data.temporal import Events
from polytask.errors import InputError


def stream(count: int = 40, nodes: int = 9, seed: int = 0, width: int = 0) -> Events:
    key = torch.Generator().manual_seed(seed)
    source, destination = torch.randint(nodes, (2, count), generator=key)
    time = torch.randint(2 * count, (count,), generator=key).sort().values
    features = torch.randn(count, width, generator=key) if width else None
    return Events("stream", source, destination, time, features, nodes=nodes)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values)


def test_parts_keep_their_nodes_rows_and_features() -> None:
    events = stream(width=3)
    assert events.nodes == 9 and events.width == 3 and events.time.dtype == torch.float64
    part = events[events.source == 2]
    assert part.nodes == 9 and torch.equal(part.rows, (events.source == 2).nonzero()[:, 0] + 1)
    again = Events.joined([events[:15], events[15:]])
    for column in ("source", "destination", "time", "features", "rows"):
        assert torch.equal(getattr(again, column), getattr(events, column))
    assert Events("none", torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0)).nodes == 0


def test_touches_is_membership_of_either_end() -> None:
    events, nodes = stream(), torch.tensor([1, 4])
    expected = [u in (1, 4) or v in (1, 4) for u, v in zip(events.source.tolist(), events.destination.tolist(), strict=True)]
    assert events.touches(nodes).tolist() == expected


@pytest.mark.parametrize(
    ("source", "time", "message"),
    [
        ([0, 1, 2], [1.0, 3.0, 2.0], r"f\.csv: row 3: time 2\.0, expected none before that of the row in front"),
        ([0, 1, 2], [1.0, float("nan"), 2.0], r"f\.csv: row 2: time nan, expected a finite number"),
        ([0, 2**31, 2], [1.0, 2.0, 2.0], r"f\.csv: row 2: source 2147483648, expected a node from 0 to 2147483647"),
        ([0, 1, -2], [1.0, 2.0, 2.0], r"f\.csv: row 3: source -2"),
        ([0, 1], [1.0, 2.0, 2.0], r"f\.csv: 2 sources of 3 events"),
        ([0.0, 1.0, 2.0], [1.0, 2.0, 2.0], r"f\.csv: sources \(3,\) torch\.float32, expected \(E,\) integers"),
    ],
)
def test_what_cannot_be_is_refused_by_row(source: list[float], time: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Events("f.csv", torch.tensor(source), torch.tensor([0, 1, 2]), torch.tensor(time))


def test_a_node_beyond_the_number_of_nodes_is_refused() -> None:
    with pytest.raises(InputError, match=r"f: row 2: destination 5, expected a node from 0 to 4"):
        Events("f", torch.tensor([0, 1]), torch.tensor([4, 5]), numbers(0, 1), nodes=5)
