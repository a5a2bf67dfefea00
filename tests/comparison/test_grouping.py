"""The suggested grouping is the best partition under the pairwise gains."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polytask.comparison.grouping import ENUMERATED, _partitions, group, total


def test_tasks_that_help_each_other_are_grouped_and_a_harmful_one_stands_apart() -> None:
    gains = [[0, 0.2, -0.3], [0.1, 0, -0.3], [-0.1, -0.1, 0]]
    assert sorted(map(sorted, group(gains))) == [[0, 1], [2]]


def test_where_nothing_is_decided_one_model_for_all_is_suggested() -> None:
    assert group(np.zeros((4, 4)).tolist()) == [[0, 1, 2, 3]]


def test_all_harmful_means_all_apart() -> None:
    gains = (-np.ones((5, 5)) + np.eye(5)).tolist()
    assert sorted(group(gains)) == [[0], [1], [2], [3], [4]]


def test_partitions_are_counted_by_the_bell_numbers() -> None:
    assert [len(list(_partitions(list(range(n))))) for n in range(1, 7)] == [1, 2, 5, 15, 52, 203]


@given(st.integers(2, 5), st.integers(0, 10_000))
def test_no_partition_gains_more(count: int, seed: int) -> None:
    gains = np.random.default_rng(seed).normal(size=(count, count)).tolist()
    best = total(group(gains), gains)
    assert all(total(other, gains) <= best + 1e-9 for other in _partitions(list(range(count))))


@given(st.integers(0, 10_000))
def test_many_tasks_are_partitioned_greedily_and_never_worse_than_apart(seed: int) -> None:
    count = ENUMERATED + 2
    gains = np.random.default_rng(seed).normal(size=(count, count)).tolist()
    groups = group(gains)
    assert sorted(i for members in groups for i in members) == list(range(count))
    assert total(groups, gains) >= 0
