"""Mixtures: whose turn it is, how often, and the same again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polytask.data import Examples, Mixture
from polytask.errors import InputError

SIZES = {"a": 640, "b": 160, "c": 20}


def sources(sizes: dict[str, int] = SIZES) -> dict[str, Examples]:
    return {name: Examples(torch.arange(size), {name: torch.arange(size) * 3}) for name, size in sizes.items()}


def mixture(**settings: Any) -> Mixture:
    return Mixture(sources(), **({"batch_size": 10} | settings))


def flat(batches: Iterator[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    return [(name, inputs.tolist()) for batch in batches for name, (inputs, _) in batch.items()]


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"sampling": "proportional"}, [64, 16, 2]),
        ({"sampling": "uniform"}, [1, 1, 1]),
        ({"sampling": "temperature", "temperature": 1.0}, [64, 16, 2]),
        ({"sampling": "temperature", "temperature": 2.0}, [8, 4, 2**0.5]),
        ({"sampling": "temperature"}, [64**0.2, 16**0.2, 2**0.2]),
        ({"sampling": "temperature", "temperature": 1e9}, [1, 1, 1]),
    ],
)
def test_turns_come_as_often_as_they_should(settings: dict[str, Any], weights: list[float]) -> None:
    mixed = mixture(**settings)
    expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    torch.testing.assert_close(mixed.probabilities(), expected)
    turns = Counter(name for number in range(40) for batch in mixed.epoch(number) for name in batch)
    total = sum(turns.values())
    assert total == 40 * len(mixed) == 40 * 82
    for name, p in zip(SIZES, expected.tolist(), strict=True):
        assert abs(turns[name] / total - p) < 4 * (p * (1 - p) / total) ** 0.5


@given(st.integers(0, 4), st.integers(0, 90), st.sampled_from(["one", "all"]), st.integers(0, 3))
def test_epochs_repeat_and_skip(number: int, skip: int, each: str, seed: int) -> None:
    mixed = mixture(tasks_per_step=each, seed=seed, sampling="temperature")
    whole = list(mixed.epoch(number))
    rest = list(mixture(tasks_per_step=each, seed=seed, sampling="temperature").epoch(number, skip))
    assert len(whole) == len(mixed)
    assert flat(iter(rest)) == flat(iter(whole[skip:]))


def test_each_batch_is_of_its_task_and_epochs_differ() -> None:
    mixed = mixture()
    for batch in mixed.epoch(0):
        ((_, (inputs, target)),) = batch.items()
        assert torch.equal(target, 3 * inputs) and len(inputs) == 10
    assert flat(mixed.epoch(0)) != flat(mixed.epoch(1))


def test_all_tasks_a_step() -> None:
    mixed = mixture(tasks_per_step="all")
    batches = list(mixed.epoch(0))
    assert len(batches) == len(mixed) == 64 and all(list(batch) == list(SIZES) for batch in batches)
    # The longest source is seen once; a shorter one starts again in another order.
    assert sorted(x for batch in batches for x in batch["a"][0].tolist()) == list(range(640))
    rounds = [[x for batch in batches[i : i + 2] for x in batch["c"][0].tolist()] for i in range(0, 64, 2)]
    assert all(sorted(values) == list(range(20)) for values in rounds)
    assert len({tuple(values) for values in rounds}) == len(rounds)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_have_the_same_turns_and_share_the_batches(world: int) -> None:
    whole = list(mixture().epoch(3))
    shares = [list(mixture().shared(rank, world).epoch(3)) for rank in range(world)]
    for i, batch in enumerate(whole):
        ((name, (inputs, _)),) = batch.items()
        assert all(list(share[i]) == [name] for share in shares)
        parts = [share[i][name][0] for share in shares]
        assert sorted(torch.cat(parts).tolist()) == sorted(inputs.tolist())
    assert len({len(mixture().shared(rank, world)) for rank in range(world)}) == 1


def test_sources_may_be_loaders_whose_batches_name_the_task_or_not() -> None:
    pairs = [(torch.tensor([i]), torch.tensor([3 * i])) for i in range(4)]
    named = [(x, {"b": y}) for x, y in pairs]
    mixed = Mixture({"a": pairs, "b": named}, sampling="uniform")
    for batch in mixed.epoch(0):
        ((_, (inputs, target)),) = batch.items()
        assert torch.equal(target, 3 * inputs)


def test_a_source_that_is_empty_after_all_is_an_error_and_not_an_endless_loop() -> None:
    class Hollow:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[Any]:
            return iter(())

    with pytest.raises(InputError, match="says that it has 2 batches, and has none"):
        list(Mixture({"a": Hollow()}).epoch(0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampling": "unifrm"}, "did you mean 'uniform'"),
        ({"temperature": 0}, "temperature 0, expected a number > 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"tasks_per_step": "two"}, "'two', expected 'one' or 'all'"),
        ({"batch_size": 21}, "batch size 21, expected 1 to 20"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        mixture(**settings)
    with pytest.raises(InputError, match="no sources"):
        Mixture({})
