"""The same function in several processes."""

from __future__ import annotations

import os

import pytest

from polytask.errors import InputError
from polytask.workers import join_ray, unordered


def product(one: int, other: int) -> tuple[int, int]:
    return one * other, os.getpid()


def test_all_arguments_in_other_processes() -> None:
    found = list(unordered(product, [(i, 2) for i in range(5)], workers=2))
    assert sorted(value for value, _ in found) == [0, 2, 4, 6, 8]
    assert os.getpid() not in {process for _, process in found}


def test_a_cluster_that_does_not_answer_is_one_error() -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="no Ray cluster answers at 'localhost:1'"):
        join_ray("localhost:1")
