"""Encoding of time, memory and embeddings, against loops over events and torch's own attention."""

import math

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.nn.graph import (
    Around,
    AttentionEmbedding,
    IdentityEmbedding,
    TemporalMemory,
    TimeEncoding,
    TimeProjection,
)


def test_time_is_encoded_in_cosines_of_exact_times() -> None:
    encode, time = TimeEncoding(4), 1_082_040_961.0
    expected = [math.cos(time * float(w)) for w in encode.frequency.detach().double()]
    assert encode.frequency.tolist() == pytest.approx([1, 1e-3, 1e-6, 1e-9])
    torch.testing.assert_close(encode(torch.tensor([time], dtype=torch.float64))[0], torch.tensor(expected))


class ByDictionary:
    """TGN's memory one event at a time within a batch: the last message of a node is kept in a dictionary."""

    def __init__(self, memory: TemporalMemory) -> None:
        self.memory = memory
        self.states = {n: torch.zeros(memory.width) for n in range(memory.nodes)}
        self.times = dict.fromkeys(range(memory.nodes), 0.0)
        self.waiting: dict[int, tuple[Tensor, float]] = {}

    def state(self, node: int) -> tuple[Tensor, float]:
        if node not in self.waiting:
            return self.states[node], self.times[node]
        message, time = self.waiting[node]
        return self.memory.cell(self.memory.message(message)[None], self.states[node][None])[0], time

    def batch(self, source: Tensor, destination: Tensor, time: Tensor, features: Tensor) -> None:
        ends = {*source.tolist(), *destination.tolist()}
        new = {node: self.state(node) for node in ends}
        for node, (state, moment) in new.items():
            self.states[node], self.times[node] = state.detach(), moment
            self.waiting.pop(node, None)
        for i, j, t, e in zip(source.tolist(), destination.tolist(), time.tolist(), features, strict=True):
            for a, b in ((i, j), (j, i)):
                gap = self.memory.encode(torch.tensor(t - self.times[a], dtype=torch.float64))
                self.waiting[a] = (torch.cat([self.states[a], self.states[b], e, gap]), t)


@pytest.mark.parametrize(("message_width", "cell"), [(None, "gru"), (5, "rnn")])
def test_the_memory_is_that_of_a_dictionary_of_messages(message_width: int | None, cell: str) -> None:
    torch.manual_seed(0)
    memory = TemporalMemory(8, 6, edge_width=2, time_width=3, message_width=message_width, cell=cell)
    reference, clock = ByDictionary(memory), 1e9
    for size in (5, 1, 12, 7):
        source, destination = torch.randint(8, (2, size))
        time = clock + torch.rand(size, dtype=torch.float64).cumsum(0)
        features, clock = torch.randn(size, 2), float(time[-1])
        memory.advance(memory(torch.unique(torch.cat([source, destination]))), source, destination, time, features)
        reference.batch(source, destination, time, features)
        found = memory(torch.arange(8))
        torch.testing.assert_close(found.states, torch.stack([reference.state(n)[0] for n in range(8)]))
        assert found.time.tolist() == [reference.state(n)[1] for n in range(8)]
    assert found.states.requires_grad and not memory.table.column("state").requires_grad
    again = TemporalMemory(8, 6, edge_width=2, time_width=3, message_width=message_width, cell=cell)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again(torch.arange(8)).states, found.states)


def test_a_cell_at_the_papers_scale_has_its_parameters() -> None:
    with torch.device("meta"):
        memory = TemporalMemory(10, 172, edge_width=172)
    assert sum(p.numel() for p in memory.cell.parameters()) == 3 * 172 * (688 + 172) + 6 * 172 == 444_792


def around(count: int, size: int, width: int, edge_width: int) -> Around:
    there = torch.rand(count, size) < 0.6
    there[0], there[1] = False, True
    since = 100 * torch.rand(count, size, dtype=torch.float64)
    return Around(torch.randn(count, size, width), torch.randn(count, size, edge_width), since, there)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    count, size, width, edge_width = 6, 4, 5, 2
    encode = TimeEncoding(3)
    ours = AttentionEmbedding(width, encode, edge_width, heads=2).eval()
    theirs = nn.MultiheadAttention(8, 2, kdim=10, vdim=10, batch_first=True).eval()
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.query.weight)
        theirs.k_proj_weight.copy_(ours.key.weight)
        theirs.v_proj_weight.copy_(ours.value.weight)
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    states, near = torch.randn(count, width), around(count, size, width, edge_width)
    query = torch.cat([states, encode(torch.zeros(count))], 1)[:, None]
    keys = torch.cat([near.states, near.features, encode(near.since)], -1)
    found = torch.zeros(count, 8)
    found[1:] = theirs(query[1:], keys[1:], keys[1:], key_padding_mask=~near.there[1:])[0][:, 0]
    near.states.requires_grad_()
    given = ours(states, torch.zeros(count), near)
    torch.testing.assert_close(given, ours.merge(torch.cat([found, states], 1)))
    given.sum().backward()
    assert near.states.grad is not None and not near.states.grad[~near.there].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def test_simple_embeddings() -> None:
    states, since = torch.randn(3, 4), torch.tensor([0.0, 10.0, 20.0], dtype=torch.float64)
    assert IdentityEmbedding()(states, since) is states
    project = TimeProjection(4, gap=10.0)
    nn.init.zeros_(project.drift.bias)
    expected = states * (1 + torch.tensor([[0.0], [1.0], [2.0]]) * project.drift.weight[:, 0])
    torch.testing.assert_close(project(states, since), expected)


def test_what_cannot_be_is_refused() -> None:
    memory, one = TemporalMemory(3, 4, edge_width=2), torch.tensor([0])
    with pytest.raises(InputError, match="events with 0 features, expected 2"):
        memory.advance(memory(torch.arange(3)), one, one, one)
    with pytest.raises(InputError, match="3 heads, expected a divisor of 10"):
        AttentionEmbedding(5, TimeEncoding(5), heads=3)
    with pytest.raises(InputError, match="did you mean 'gru'"):
        TemporalMemory(3, 4, cell="gru2")
    with pytest.raises(InputError, match="gap of 0"):
        TimeProjection(3, 0)
