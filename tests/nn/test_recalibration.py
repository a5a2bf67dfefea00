"""Statistics of batch norms, measured anew."""

from __future__ import annotations

import pytest
import torch
from tests.share.slimmable.networks import batched, images
from torch import nn

from polytask.nn.recalibration import recalibrate
from polytask.share.slimmable import Slimmable


def test_statistics_are_the_mean_of_those_of_the_batches() -> None:
    norm = nn.BatchNorm1d(3, momentum=0.3)
    batches = [torch.randn(8, 3) * 2 + i for i in range(5)]
    recalibrate(norm.eval(), batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert norm.momentum == 0.3 and not norm.training


def test_it_makes_of_a_small_network_what_its_batch_statistics_make() -> None:
    network = Slimmable(batched(), batch_norm="recalibrated")
    small, x = network.extract((0.25, 0.5)), images()
    expected = network(x, (0.25, 0.5))
    stale = small.eval()(x)
    recalibrate(small, [x])
    found = small(x)
    assert (stale - expected).abs().mean() > 10 * (found - expected).abs().mean()
    # Running variances are unbiased: over a network with hundreds of values a channel the difference is below a percent.
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_modes_are_kept_and_dropout_is_off() -> None:
    norms = nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), *norms)
    network.train()
    network[0].eval()
    x = torch.randn(20, 3)
    recalibrate(network, [x])
    assert [module.training for module in network] == [False, True, True, True]
    torch.testing.assert_close(network[2].running_mean, network[0](x).mean(0))
    with pytest.raises(RuntimeError):
        recalibrate(network, [torch.randn(2, 7)])
    assert [module.training for module in network] == [False, True, True, True] and network[2].momentum == 0.1
