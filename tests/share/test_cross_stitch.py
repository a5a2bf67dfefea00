"""Cross-stitch networks: the loop over columns, and their special cases."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.errors import InputError
from polytask.share import CrossStitch, Pathway
from polytask.testing import check_sharing

TASKS = ("a", "b", "c")


def by_hand(pathway: Pathway, x: torch.Tensor, tasks: tuple[str, ...], layers: int) -> dict[str, torch.Tensor]:
    weights = pathway.state_dict()
    columns = dict.fromkeys(tasks, x)
    for layer in range(layers):
        bank = weights[f"layers.{layer}.weight"], weights[f"layers.{layer}.bias"]
        made = [(columns[t] @ bank[0][k] + bank[1][k, 0]).clamp(min=0) for k, t in enumerate(tasks)]
        units = {t: weights[f"fusions.{layer}.weights.{t}"] for t in tasks}
        columns = {t: torch.stack([units[t][j] * made[j] for j in range(len(tasks))]).sum(0) for t in tasks}
    return columns


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_it_is_the_loop_over_columns(tasks: int, layers: int, width: int, per_channel: bool) -> None:
    torch.manual_seed(0)
    names = TASKS[:tasks]
    pathway = CrossStitch(layers, per_channel=per_channel).build(width, names).double()
    for parameter in pathway.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, width, dtype=torch.float64)
    expected = by_hand(pathway, x, names, layers)
    for asked in (names, names[::-1], names[-1:]):
        torch.testing.assert_close(pathway(x, asked), {task: expected[task] for task in asked})


def test_a_unit_for_each_channel_keeps_the_contract() -> None:
    check_sharing(lambda: CrossStitch(layers=3, per_channel=True))


def test_units_begin_at_nine_tenths_and_add_up_to_one() -> None:
    two = CrossStitch().build(4, ("a", "b")).state_dict()
    torch.testing.assert_close(two["fusions.0.weights.a"], torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(two["fusions.1.weights.b"], torch.tensor([0.1, 0.9]))
    three = CrossStitch(same=0.7, per_channel=True).build(4, TASKS).state_dict()
    torch.testing.assert_close(three["fusions.0.weights.b"], torch.tensor([0.15, 0.7, 0.15])[:, None].expand(3, 4))


def test_columns_that_are_not_stitched_are_networks_apart() -> None:
    torch.manual_seed(0)
    pathway = CrossStitch(layers=2, same=1.0).build(8, ("a", "b"))
    x = torch.randn(16, 8)
    first, second = (pathway.state_dict()[f"layers.{layer}.weight"][1] for layer in range(2))
    output = pathway(x, ("b",))["b"]
    torch.testing.assert_close(output, ((x @ first).relu() @ second).relu())
    output.sum().backward()
    for layer in pathway.layers:  # type: ignore[union-attr]
        assert bool(layer.weight.grad[1].any()) and not bool(layer.weight.grad[0].any())


def test_stitched_columns_are_shared_and_the_last_unit_is_not() -> None:
    pathway = CrossStitch(layers=2).build(4, TASKS)
    assert sum(p.numel() for p in pathway.shared_parameters()) == 2 * 3 * (4 * 4 + 4) + 3 * 3
    assert [p.numel() for p in pathway.parameters_of("b")] == [3]
    pathway(torch.randn(32, 4), ("b",))["b"].sum().backward()
    assert all(bool(layer.weight.grad.flatten(1).any(1).all()) for layer in pathway.layers)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="cross_stitch: 0 layers, expected at least 1"):
        CrossStitch(layers=0)
