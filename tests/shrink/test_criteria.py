"""Criteria: by hand, and what they choose."""

from __future__ import annotations

import pytest
import torch
from tests.shrink.networks import built
from torch import nn

from polytask.errors import InputError
from polytask.shrink import criteria, find_structure, overall, uniform, weakest


def test_scores_by_hand() -> None:
    network, x, _ = built("residual")
    stem, a = find_structure(network, x).groups
    w, b = network.stem.weight.detach(), network.b.weight.detach()
    torch.testing.assert_close(criteria["l1"](network, stem), w.abs().mean((1, 2, 3)) + b.abs().mean((1, 2, 3)))
    rms = w.square().mean((1, 2, 3)).sqrt() + b.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(criteria["l2"](network, stem), rms)
    torch.testing.assert_close(criteria["bn_scale"](network, stem), network.norm.weight.abs())
    with pytest.raises(InputError, match="group 'a': none of its layers is followed by a norm"):
        criteria["bn_scale"](network, a)
    filters = network.a.weight.abs().sum((1, 2, 3))
    assert weakest(network, a, 3) == filters.argsort()[:3].tolist()
    assert len(set(weakest(network, a, 6, "random"))) == 6


def test_a_head_scores_the_mean_of_its_weights() -> None:
    network, x, _ = built("vit")
    group = find_structure(network, x)["0.blocks.0.attention.qkv"]
    weight = network.get_submodule(group.name).weight.detach()
    expected = weight.view(3, 3, 4, 12).abs().mean((0, 2, 3))
    torch.testing.assert_close(criteria["l1"](network, group), expected)


def test_criteria_of_ones_own() -> None:
    network, x, _ = built("residual")
    stem = find_structure(network, x)["stem"]
    assert weakest(network, stem, 2, lambda network, group: -torch.arange(8.0)) == [7, 6]
    assert weakest(network, stem, 2, lambda network, group: torch.zeros(8)) == [0, 1]
    with pytest.raises(InputError, match=r"scores \(3,\) of group 'stem', expected \(8,\)"):
        weakest(network, stem, 2, lambda network, group: torch.zeros(3))
    with pytest.raises(InputError, match="unknown criterion 'l3'"):
        weakest(network, stem, 2, "l3")


def test_the_same_ratio_everywhere_or_overall() -> None:
    network = nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 2))
    structure = find_structure(network, torch.randn(1, 3))
    assert {name: len(units) for name, units in uniform(network, structure, 0.55).items()} == {"0": 5, "2": 5}
    assert {name: len(units) for name, units in uniform(network, structure, 1.0).items()} == {"0": 9, "2": 9}
    assert uniform(network, structure, 0.0) == overall(network, structure, 0.0) == {}
    with torch.no_grad():  # half of the first layer is weak for its layer; the whole of the second is small
        network[0].weight[:5] *= 1e-3
        network[2].weight.fill_(1e-6)
    assert {name: sorted(units) for name, units in overall(network, structure, 0.25).items()} == {"0": [0, 1, 2, 3, 4]}
    assert {name: len(units) for name, units in overall(network, structure, 1.0).items()} == {"0": 9, "2": 9}
