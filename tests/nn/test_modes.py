"""Evaluation mode for a block."""

import pytest
from torch import nn

from polytask.nn.modes import evaluating


def test_each_module_has_its_own_mode_again() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    network[1].eval()  # a frozen part
    before = [module.training for module in network.modules()]
    with evaluating(network):
        assert not any(module.training for module in network.modules())
        network.train()
    assert [module.training for module in network.modules()] == before
    with pytest.raises(ValueError), evaluating(network):
        raise ValueError
    assert [module.training for module in network.modules()] == before
