"""What becomes slimmable, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polytask import InputError
from polytask.share.slimmable import Residual, Slimmable, SlimmableConv2d


class Standardised(nn.Conv2d):
    """A convolution of somebody's own."""


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)], "'1' is a PReLU, expected Conv2d"),
        ([nn.Sequential(nn.Conv1d(3, 4, 1)), nn.Linear(4, 2)], r"'0\.0' is a Conv1d"),
        ([Standardised(3, 4, 1), nn.Conv2d(4, 2, 1)], "'0' is a Standardised"),
        ([nn.LayerNorm((3, 4)), nn.Linear(4, 2)], "'0' is a LayerNorm"),
        ([nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 2, 1)], "2 groups, 4 to 8 channels"),
        ([nn.Conv2d(4, 8, 1, groups=4), nn.Conv2d(8, 2, 1)], "4 groups, 4 to 8 channels"),
        ([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4)], "and another layer after it"),
        ([nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 1)], "padding mode 'reflect'"),
        ([nn.ReLU()], "last layer is no nn.Conv2d or nn.Linear"),
        ([nn.Conv2d(4, 4, 1), Residual(nn.Conv2d(4, 4, 1))], "outside a Residual"),
    ],
)
def test_what_cannot_be_slimmed_is_named(layers: list[nn.Module], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Slimmable(nn.Sequential(*layers))


def test_channels_are_whole_groups_of_every_group_norm() -> None:
    network = Slimmable(nn.Sequential(nn.Conv2d(1, 48, 1), nn.GroupNorm(4, 48), nn.Conv2d(48, 80, 1), nn.Conv2d(80, 2, 1)))
    assert isinstance(network[0], SlimmableConv2d) and network[0].multiple == 24  # of 8 and 12
    assert network(torch.zeros(1, 1, 2, 2), 0.1).shape == (1, 2, 2, 2)


def test_the_network_that_was_given_stays_as_it_was() -> None:
    plain = nn.Sequential(nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16)), nn.Linear(16, 2))
    before = [type(module) for module in plain.modules()]
    network = Slimmable(plain)
    assert [type(module) for module in plain.modules()] == before
    assert not {id(p) for p in plain.parameters()} & {id(p) for p in network.parameters()}
    assert torch.equal(network.train()(x := torch.randn(5, 3)), plain.train()(x))


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="batch_norm 'shared', expected 'switchable'"):
        Slimmable(nn.Sequential(nn.Linear(1, 1)), batch_norm="shared")  # type: ignore[arg-type]
