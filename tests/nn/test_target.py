"""Target networks: hard, soft and lagging ones against their recursions; updates are counted once each."""

import pytest
import torch
from torch import nn

from polytask.errors import InputError
from polytask.nn.target import TargetNetwork, Updates

WALK = [float(k * k) for k in range(7)]  # a parameter after 0, 1, ... updates


def followed(**settings: object) -> list[float]:
    """The target while the parameter goes along `WALK`, one update after the other."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, WALK[0])
    target = TargetNetwork(network, **settings)  # type: ignore[arg-type]
    found = []
    for value in WALK[1:]:
        nn.init.constant_(network.weight, value)
        target.follow(network)
        found.append(float(target(network, torch.ones(1, 1))))
        assert network.weight.item() == value
    return found


def mixed(values: list[float], rate: float) -> list[float]:
    found, at = [], WALK[0]
    for value in values:
        at = (1 - rate) * at + rate * value
        found.append(at)
    return found


def test_a_soft_target_after_the_update_and_before_it() -> None:
    assert followed(rate=0.25) == pytest.approx(mixed(WALK[1:], 0.25))
    assert followed(rate=0.25, lag=True) == pytest.approx(mixed(WALK[:-1], 0.25))


def test_a_hard_target_moves_every_period() -> None:
    assert followed(rate=1.0, period=3) == [0, 0, WALK[3], WALK[3], WALK[3], WALK[6]]


def test_a_target_has_no_parameters_and_is_in_the_state() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    target = TargetNetwork(network)
    assert list(target.parameters()) == []
    with torch.no_grad():
        network[0].weight.add_(1.0)  # type: ignore[operator]
    network(torch.randn(8, 2))  # the running statistics move
    target.follow(network)
    again = TargetNetwork(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    again.load_state_dict(target.state_dict())
    x = torch.randn(4, 2)
    assert torch.equal(again(network.eval(), x), target(network, x)) and not target(network, x).requires_grad
    target.reset(network)
    torch.testing.assert_close(target(network, x), network(x).detach())


def test_updates_are_seen_once() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    updates = Updates(1)
    assert [updates.look([parameter]) for _ in range(3)] == [True, False, False]
    torch.optim.SGD([parameter], 0.1).step()  # without a gradient nothing happens
    assert not updates.look([parameter])
    parameter.grad = torch.tensor([0.0, 0.0, 1e-3])
    torch.optim.SGD([parameter], 0.1).step()
    assert updates.look([parameter]) and int(updates.get_buffer("count")) == 2


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="rate 0"):
        TargetNetwork(nn.Linear(1, 1), rate=0.0)
