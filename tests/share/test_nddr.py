"""NDDR: the loop over columns, and what it is the same as."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.errors import InputError
from polytask.share import NDDR, CrossStitch

TASKS = ("a", "b", "c")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_it_is_the_loop_over_columns(tasks: int, layers: int, width: int) -> None:
    torch.manual_seed(0)
    names = TASKS[:tasks]
    pathway = NDDR(layers).build(width, names).double()
    for parameter in pathway.parameters():
        torch.nn.init.normal_(parameter)
    weights = pathway.state_dict()
    x = torch.randn(5, width, dtype=torch.float64)
    expected = dict.fromkeys(names, x)
    for layer in range(layers):
        bank = weights[f"layers.{layer}.weight"], weights[f"layers.{layer}.bias"]
        every = torch.cat([(expected[t] @ bank[0][k] + bank[1][k, 0]).clamp(min=0) for k, t in enumerate(names)], 1)
        expected = {t: (every @ weights[f"fusions.{layer}.weights.{t}"].T).clamp(min=0) for t in names}
    for asked in (names, names[::-1], names[-1:]):
        torch.testing.assert_close(pathway(x, asked), {task: expected[task] for task in asked})


def test_it_begins_as_cross_stitch_units_of_the_same_share() -> None:
    torch.manual_seed(0)
    nddr = NDDR(layers=2, same=0.8).build(5, TASKS)
    torch.manual_seed(0)
    stitched = CrossStitch(layers=2, same=0.8).build(5, TASKS)
    x = torch.randn(7, 5)
    torch.testing.assert_close(nddr(x, TASKS), stitched(x, TASKS))
    start = nddr.state_dict()["fusions.0.weights.b"]
    torch.testing.assert_close(start, torch.cat([0.1 * torch.eye(5), 0.8 * torch.eye(5), 0.1 * torch.eye(5)], 1))


def test_it_has_the_sizes_that_it_was_given() -> None:
    pathway = NDDR(layers=2).build(4, TASKS)
    assert sum(p.numel() for p in pathway.shared_parameters()) == 2 * 3 * (4 * 4 + 4) + 3 * (4 * 12)
    assert [tuple(p.shape) for p in pathway.parameters_of("b")] == [(4, 12)]
    with pytest.raises(InputError, match="nddr: 0 layers, expected at least 1"):
        NDDR(layers=0)
