"""Tables of nodes against dictionaries that see one event at a time."""

from collections import defaultdict, deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.errors import InputError
from polytask.nn.graph import LastMessages, NodeTable, RecentNeighbours, last_rows


def table() -> NodeTable:
    return NodeTable(5, state=((2,), torch.float32), time=((), torch.float64))


def filled() -> NodeTable:
    found = table()
    found.write(
        torch.tensor([3, 1]),
        state=torch.tensor([[1.0, 2], [3, 4]]),
        time=torch.tensor([1.1e9 + 1, 5.0], dtype=torch.float64),
    )
    return found


def test_rows_are_written_reset_and_restored() -> None:
    one = filled()
    assert one.state[3].tolist() == [1, 2] and one.time[1] == 5 and one.state[0].tolist() == [0, 0]
    whole, some = one.snapshot(), one.snapshot(torch.tensor([1]))
    one.reset()
    assert not one.state.any() and not one.time.any()
    one.restore(some)
    assert one.state.tolist() == [[0, 0], [3, 4], [0, 0], [0, 0], [0, 0]]
    one.restore(whole)
    assert torch.equal(one.state, filled().state) and torch.equal(one.time, filled().time)


def test_the_state_dict_has_the_rows() -> None:
    one, other = filled(), table()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.state, one.state) and torch.equal(other.time, one.time)


def test_times_keep_their_precision() -> None:
    one = filled().to(torch.bfloat16)
    assert one.state.dtype == torch.bfloat16 and one.time.dtype == torch.float64 and one.time[3] == 1.1e9 + 1
    assert filled().to("meta").time.device.type == "meta"


def test_gradients_reach_what_was_written_until_detached() -> None:
    one, value = table(), torch.ones(1, 2, requires_grad=True)
    one.write(torch.tensor([2]), state=2 * value)
    one.write(torch.tensor([0]), state=torch.ones(1, 2))
    one.state.sum().backward()
    assert value.grad is not None and value.grad.tolist() == [[2, 2]]
    one.detach()
    assert not one.state.requires_grad and one.state[2].tolist() == [2, 2]
    assert not one.snapshot().columns["state"].requires_grad


def test_a_table_without_nodes_is_refused() -> None:
    with pytest.raises(InputError, match="a table of 0 nodes"):
        NodeTable(0)


def test_last_rows_of_nothing() -> None:
    assert [len(part) for part in last_rows(torch.empty(0, dtype=torch.int64))] == [0, 0]


events = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30)


def drawn(batch: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    nodes, others = torch.tensor(batch, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return nodes, others


@settings(deadline=None, max_examples=60)
@given(st.lists(events, max_size=4), st.sets(st.integers(0, 6)))
def test_last_messages_are_those_of_a_dictionary(batches: list[list[tuple[int, int]]], used: set[int]) -> None:
    store, known, clock = LastMessages(7, 1), dict[int, tuple[float, float]](), 0
    for batch in batches:
        nodes, _ = drawn(batch)
        time = torch.arange(clock, clock + len(batch)).double()
        store.put(nodes, 10 * time[:, None], time)
        for k, (node, _) in enumerate(batch):
            known[node] = (10.0 * (clock + k), float(clock + k))
        clock += len(batch)
        store.clear(torch.tensor(sorted(used), dtype=torch.int64))
        for node in used:
            known.pop(node, None)
    assert {n for n in range(7) if store.waiting[n]} == set(known)
    for node, (message, moment) in known.items():
        assert store.message[node].item() == message and store.time[node].item() == moment


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.lists(events, max_size=4))
def test_recent_neighbours_are_those_of_queues(size: int, batches: list[list[tuple[int, int]]]) -> None:
    store, clock = RecentNeighbours(7, size, 1), 0
    queues: dict[int, deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=size))
    for batch in batches:
        nodes, others = drawn(batch)
        time = torch.arange(clock, clock + len(batch)).double()
        store.add(nodes, others, time, -time[:, None])
        for k, (node, other) in enumerate(batch):
            queues[node].append((other, float(clock + k)))
        clock += len(batch)
    found = store.of(torch.arange(7))
    for node in range(7):
        there = found.there[node]
        ours = zip(found.neighbours[node][there].tolist(), found.time[node][there].tolist(), strict=True)
        assert sorted(ours) == sorted(queues[node])
        assert torch.equal(found.features[node][there][:, 0].double(), -found.time[node][there])
