"""The reservoir is a uniform sample of each group."""

import pytest
import torch

from polytask.errors import InputError
from polytask.route.continual import Reservoir
from polytask.route.continual.reservoir import keys_of


def test_every_item_of_a_group_is_kept_with_equal_probability() -> None:
    """Group a has 40 items and group b, which comes late, 5: of a there are 10 in the end, each with probability 1/4."""
    kept = torch.zeros(40)
    runs = 3000
    for seed in range(runs):
        reservoir = Reservoir(20, seed)
        for i in range(40):
            reservoir.add(("a", i), "a", i)
            if i == 30:
                for j in range(5):
                    reservoir.add(("b", j), "b", -1)
        items = reservoir.items()
        assert items.count(-1) == 5 and len(items) == 15
        kept[[i for i in items if i >= 0]] += 1
    deviation = (0.25 * 0.75 / runs) ** 0.5
    assert float((kept / runs - 0.25).abs().max()) < 4 * deviation


def test_what_comes_back_counts_once() -> None:
    once, often = Reservoir(5, 3), Reservoir(5, 3)
    for epoch in range(4):
        for i in range(30):
            often.add(i, 0, i)
            if not epoch:
                once.add(i, 0, i)
    assert once.items() == often.items() and len(once) == 5
    once.clear()
    assert len(once) == 0 and once.items() == []


def test_more_groups_than_capacity_and_none() -> None:
    reservoir = Reservoir(3)
    for i in range(10):
        reservoir.add(i, i, i)
    assert len(reservoir) == 10, "one of each group at least"
    with pytest.raises(InputError, match="capacity 0"):
        Reservoir(0)


def test_keys_are_of_the_content() -> None:
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    first, second, third = keys_of(rows)
    assert first == second != third and keys_of(rows[2:]) == [third]
    assert len(keys_of(torch.zeros(2, dtype=torch.bool))) == 2
