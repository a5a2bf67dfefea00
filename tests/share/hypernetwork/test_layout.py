"""Which parameters are predicted, and their places in one vector."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polytask.errors import InputError
from polytask.share.hypernetwork import Layout
from polytask.share.hypernetwork.layout import refuse_running_statistics


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def test_flatten_and_unflatten_are_inverse_on_every_tensor() -> None:
    target = network()
    layout = Layout.of(target)
    weights = dict(target.named_parameters())
    again = layout.unflatten(layout.flatten(weights))
    assert list(again) == list(weights)
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    flat = torch.randn(5, layout.numel)
    assert torch.equal(layout.flatten(layout.unflatten(flat)), flat)


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(1, 4), min_size=0, max_size=4), min_size=1, max_size=4), st.integers(1, 3))
def test_any_shapes_scalars_too(shapes: list[list[int]], contexts: int) -> None:
    target = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
    layout = Layout.of(target)
    flat = torch.randn(contexts, layout.numel)
    weights = layout.unflatten(flat)
    assert [list(value.shape) for value in weights.values()] == [[contexts, *shape] for shape in shapes]
    assert torch.equal(layout.flatten(weights), flat)


def test_patterns_choose_and_unknown_ones_are_refused() -> None:
    layout = Layout.of(network(), ["0.*", "*.bias"])
    assert [entry.names[0] for entry in layout.entries] == ["0.weight", "0.bias", "1.bias", "4.bias"]
    assert layout.numel == 36 + 4 + 4 + 3 and layout.layers == [40, 4, 3]
    with pytest.raises(InputError, match=r"predict '4\.wait': no parameter has such a name: did you mean '4\.weight'"):
        Layout.of(network(), "4.wait")


def test_gains_fan_in_and_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.norm, self.write = nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 5, bias=False)
            self.write.weight = self.read.weight

    layout = Layout.of(Tied())
    assert [(entry.names, entry.gain) for entry in layout.entries] == [
        (("read.weight", "write.weight"), False),
        (("norm.weight",), True),
        (("norm.bias",), False),
    ]
    assert Layout.of(Tied(), "write.*").entries[0].names == ("read.weight", "write.weight")
    assert Layout.of(nn.LayerNorm(2)).entries[0].gain
    assert [entry.fan_in for entry in Layout.of(network(), "*weight").entries] == [9, 1, 16]


def test_running_statistics_are_refused() -> None:
    for norm in (nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True)):
        with pytest.raises(InputError, match=f"module '1' is {type(norm).__name__}.*expected GroupNorm"):
            refuse_running_statistics(nn.Sequential(nn.Conv2d(1, 4, 3), norm))
    refuse_running_statistics(nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4)))
