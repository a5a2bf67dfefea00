"""One network, several sets of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.errors import InputError
from polytask.share.hypernetwork.running import by_index, for_each_context, for_each_example


def run(weights: Mapping[str, Tensor], inputs: Any) -> Tensor:
    x = inputs if isinstance(inputs, Tensor) else inputs["a"] + inputs["b"]
    return x @ weights["w"].mT + weights["b"]


def weights(count: int) -> dict[str, Tensor]:
    torch.manual_seed(count)
    return {"w": torch.randn(count, 2, 3), "b": torch.randn(count, 2)}


@settings(max_examples=25)
@given(st.integers(1, 4).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(0, c - 1), min_size=1, max_size=9))))
def test_each_example_gets_its_own_weights_back_in_its_place(drawn: tuple[int, list[int]]) -> None:
    count, index = drawn
    w, x = weights(count), torch.randn(len(index), 3)
    expected = torch.stack([x[n] @ w["w"][i].T + w["b"][i] for n, i in enumerate(index)])
    torch.testing.assert_close(by_index(run, w, x, torch.tensor(index)), expected)
    torch.testing.assert_close(by_index(run, w, {"a": x, "b": 0 * x}, torch.tensor(index)), expected)
    for vectorize in (True, False):
        own = {name: value[index] for name, value in w.items()}
        torch.testing.assert_close(for_each_example(run, own, x, vectorize), expected)
        torch.testing.assert_close(for_each_example(run, own, {"a": x, "b": 0 * x}, vectorize), expected)
        every = for_each_context(run, w, x, vectorize)
        torch.testing.assert_close(torch.stack([every[i, n] for n, i in enumerate(index)]), expected)


def test_as_many_weights_as_examples_are_expected() -> None:
    with pytest.raises(InputError, match="2 contexts for 3 examples"):
        for_each_example(run, weights(2), torch.randn(3, 3), True)
