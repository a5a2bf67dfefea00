"""Streams repeat any epoch, from any batch on."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from polytask.data import Batches, Examples, Loader, Mixture, Stream, as_stream
from polytask.data.stream import generator
from polytask.errors import InputError


def rows(batches: Any) -> list[list[int]]:
    return [batch[0].tolist() for batch in batches]


def numbers(size: int) -> Examples:
    return Examples(torch.arange(size), {"t": torch.arange(size) * 2})


sizes = st.tuples(st.integers(1, 40), st.integers(1, 12)).filter(lambda pair: pair[1] <= pair[0])


@given(sizes, st.integers(0, 5), st.integers(0, 2**40), st.integers(0, 12))
def test_an_epoch_is_a_permutation_that_repeats_and_skips(size: tuple[int, int], number: int, seed: int, skip: int) -> None:
    count, batch = size
    stream = Batches(numbers(count), batch, seed=seed)
    whole = rows(stream.epoch(number))
    assert len(whole) == len(stream) == count // batch and all(len(row) == batch for row in whole)
    flat = list(itertools.chain(*whole))
    assert len(set(flat)) == len(flat) == count // batch * batch and set(flat) <= set(range(count))
    assert rows(stream.epoch(number)) == whole
    assert rows(stream.epoch(number, skip)) == whole[skip:]
    assert all(torch.equal(targets["t"], 2 * inputs) for inputs, targets in stream.epoch(number))


def test_what_is_drawn_anew_is_a_function_of_the_epoch() -> None:
    def redraw(inputs: Any, key: torch.Generator) -> Any:
        return torch.where(inputs % 2 == 0, inputs, 100 + torch.randint(1000, inputs.shape, generator=key))

    data = Examples(torch.arange(12), {"t": torch.arange(12)}, redraw)
    stream = Batches(data, 6, seed=3)
    first, second = (list(stream.epoch(number)) for number in (0, 1))
    drawn = []
    for epoch in (first, second):
        inputs, rows = torch.cat([x for x, _ in epoch]), torch.cat([y["t"] for _, y in epoch])
        drawn.append(inputs[rows.argsort()])
    even = torch.arange(12) % 2 == 0
    assert all(torch.equal(each[even], torch.arange(0, 12, 2)) and bool((each[~even] >= 100).all()) for each in drawn)
    assert bool((drawn[0] != drawn[1])[~even].any())
    # A run that goes on amid the epoch, and processes that share it, have the same draws.
    assert torch.equal(next(stream.epoch(0, 1))[0], first[1][0])
    shares = [list(Batches(data, 6, 3, rank=rank, world=2).epoch(0)) for rank in range(2)]
    for step, (inputs, _) in enumerate(first):
        assert torch.equal(inputs.sort().values, torch.cat([share[step][0] for share in shares]).sort().values)
    mixed = [batch["t"][0].tolist() for batch in Mixture({"t": data}, batch_size=6).epoch(1)]
    assert mixed == [batch["t"][0].tolist() for batch in Mixture({"t": data}, batch_size=6).epoch(1)]
    assert torch.equal(data.inputs, torch.arange(12)) and data.subset(torch.arange(4)).redraw is None  # type: ignore[arg-type]


def test_epochs_and_seeds_differ() -> None:
    data = numbers(50)
    orders = {tuple(rows(Batches(data, 50, seed=seed).epoch(number))[0]) for seed in range(4) for number in range(4)}
    assert len(orders) == 16


@given(sizes, st.integers(1, 4), st.integers(1, 3))
def test_processes_and_accumulated_batches_part_each_step(size: tuple[int, int], world: int, accumulate: int) -> None:
    count, batch = size
    data = numbers(count)
    if batch < world * accumulate:
        with pytest.raises(InputError, match="cannot be shared"):
            Batches(data, batch, accumulate=accumulate, rank=0, world=world)
        return
    together = rows(Batches(data, batch, seed=1).epoch(2))
    shares = [rows(Batches(data, batch, 1, accumulate, rank, world).epoch(2)) for rank in range(world)]
    for step, expected in enumerate(together):
        parts = [share[step * accumulate + i] for share in shares for i in range(accumulate)]
        assert sorted(itertools.chain(*parts)) == sorted(expected)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_global_random_state_has_no_say() -> None:
    stream = Batches(numbers(20), 5)
    torch.manual_seed(1)
    one = rows(stream.epoch(0))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert rows(stream.epoch(0)) == one and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("size", [0, -1, 21])
def test_a_batch_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"batch size {size}, expected 1 to 20"):
        Batches(numbers(20), size)


class Noisy(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index), float(torch.rand(()))])


def loaders() -> dict[str, DataLoader[Any]]:
    data, keyed = Noisy(), torch.Generator().manual_seed(7)
    sampler = torch.utils.data.RandomSampler(data, generator=torch.Generator())
    return {
        "shuffled": DataLoader(data, batch_size=5, shuffle=True),
        "own generator": DataLoader(data, batch_size=5, shuffle=True, generator=keyed),
        "own sampler": DataLoader(data, batch_size=5, sampler=sampler),
        "worker": DataLoader(data, batch_size=5, shuffle=True, num_workers=1),
        "distributed": DataLoader(data, batch_size=5, sampler=DistributedSampler(data, 1, 0, shuffle=True)),
    }


@pytest.mark.parametrize("kind", ["shuffled", "own generator", "own sampler", "worker", "distributed"])
def test_a_shuffling_loader_repeats_its_epochs(kind: str) -> None:
    stream = Loader(loaders()[kind], seed=3)

    def order(number: int) -> list[int]:
        return [int(row[0]) for batch in stream.epoch(number) for row in batch]

    epochs = [order(0), order(1), order(0), order(1)]
    assert epochs[:2] == epochs[2:] and epochs[0] != epochs[1]
    assert sorted(epochs[0]) == list(range(24))


@pytest.mark.parametrize("kind", ["shuffled", "own generator", "own sampler", "worker"])
@pytest.mark.parametrize("skip", [1, 3, 5])
def test_going_on_in_the_middle_gives_the_batches_and_the_noise_of_a_run_that_was_not_killed(kind: str, skip: int) -> None:
    stream = Loader(loaders()[kind], seed=3)
    torch.manual_seed(5)
    seen, states = [], []
    for batch in stream.epoch(2):
        seen.append(batch)
        torch.rand(3)  # what a random layer draws in a step
        states.append(torch.get_rng_state())
    torch.manual_seed(99)
    torch.set_rng_state(states[skip - 1])  # the checkpoint after `skip` steps
    again = []
    for batch in stream.epoch(2, skip):
        again.append(batch)
        torch.rand(3)
    assert len(again) == len(seen) - skip and all(torch.equal(a, b) for a, b in zip(again, seen[skip:], strict=True))
    assert torch.equal(torch.get_rng_state(), states[-1])


def test_a_list_of_batches_is_a_loader() -> None:
    stream = as_stream([torch.tensor([i]) for i in range(4)], 1)
    assert isinstance(stream, Loader) and len(stream) == 4
    assert [int(batch) for batch in stream.epoch(0, skip=2)] == [2, 3]
    assert list(stream.epoch(0, skip=9)) == []


def test_what_has_no_length_or_no_batch_is_refused() -> None:
    with pytest.raises(InputError, match="no length"):
        Loader(iter([1]))
    with pytest.raises(InputError, match="no batches"):
        Loader(DataLoader(TensorDataset(torch.zeros(0))))


def test_data_becomes_a_stream_by_its_kind() -> None:
    data = numbers(12)
    batches = as_stream(data, 4, seed=3, accumulate=2, rank=1, world=2)
    assert isinstance(batches, Batches) and (batches.accumulate, batches.rank, batches.world) == (2, 1, 2)
    assert as_stream(batches, 99) is batches
    mixture = as_stream({"t": data}, 4, seed=3)
    assert isinstance(mixture, Mixture) and isinstance(mixture, Stream) and len(mixture) == 3


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=3))
def test_generators_are_functions_of_their_key(key: list[int]) -> None:
    assert torch.equal(torch.rand(3, generator=generator(*key)), torch.rand(3, generator=generator(*key)))
    other = torch.rand(3, generator=generator(*key[:-1], key[-1] + 1))
    assert not torch.equal(torch.rand(3, generator=generator(*key)), other)
