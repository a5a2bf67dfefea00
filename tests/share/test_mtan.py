"""MTAN: the loop over blocks and rows, and its special cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytask.errors import InputError
from polytask.share import MTAN, Pathway
from polytask.testing import check_sharing


def by_hand(pathway: Pathway, row: Tensor, task: str, blocks: int) -> list[float]:
    """What one row gives for one task, number by number."""
    weights = {name: value.tolist() for name, value in pathway.state_dict().items()}

    def layer(name: str, x: list[float]) -> list[float]:
        rows = zip(weights[f"{name}.weight"], weights[f"{name}.bias"], strict=True)
        return [sum(w * v for w, v in zip(line, x, strict=True)) + bias for line, bias in rows]

    def relu(x: list[float]) -> list[float]:
        return [max(value, 0.0) for value in x]

    features, attended = row.tolist(), []
    for block in range(blocks):
        middle = relu(layer(f"first.{block}", features))
        features = relu(layer(f"second.{block}", middle))
        read = middle if block == 0 else middle + relu(layer(f"onward.{block - 1}", attended))
        scores = layer(f"attention.{task}.masks.{block}.2", relu(layer(f"attention.{task}.masks.{block}.0", read)))
        attended = [f / (1 + math.exp(-score)) for f, score in zip(features, scores, strict=True)]
    return attended


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4))
def test_it_is_the_loop_over_blocks(blocks: int, width: int) -> None:
    torch.manual_seed(0)
    pathway = MTAN(blocks).build(width, ("a", "b")).double()
    x = torch.randn(3, width, dtype=torch.float64)
    for task, output in pathway(x, ("b", "a")).items():
        torch.testing.assert_close(output, torch.tensor([by_hand(pathway, row, task, blocks) for row in x]).double())


def test_open_masks_leave_the_shared_network() -> None:
    pathway = MTAN().build(4, ("a", "b"))
    for name, parameter in pathway.named_parameters():
        if name.endswith(".2.bias"):
            torch.nn.init.constant_(parameter, 50.0)
    x = torch.randn(6, 4)
    expected = x
    for first, second in zip(pathway.first, pathway.second, strict=True):  # type: ignore[arg-type]
        expected = second(first(expected).relu()).relu()
    torch.testing.assert_close(pathway(x, ("a", "b")), dict.fromkeys(("a", "b"), expected))


def test_the_shared_network_is_shared_and_masks_are_not() -> None:
    pathway = MTAN(blocks=3).build(4, ("a", "b"))
    linear = 4 * 4 + 4
    assert sum(p.numel() for p in pathway.shared_parameters()) == (2 * 3 + 2) * linear
    assert sum(p.numel() for p in pathway.parameters_of("a")) == 2 * 3 * linear + 2 * 4 * 4
    check_sharing(lambda: MTAN(blocks=1))
    with pytest.raises(InputError, match="mtan: 0 blocks, expected at least 1"):
        MTAN(blocks=0)
