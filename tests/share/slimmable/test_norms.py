"""Norms: groups of constant size, and statistics that belong to a width."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polytask import InputError
from polytask.share.slimmable import (
    RecalibratedBatchNorm,
    Slimmable,
    SlimmableGroupNorm,
    SlimmableLayerNorm,
    SwitchableBatchNorm,
)


def test_groups_keep_their_size() -> None:
    norm = SlimmableGroupNorm(4, 32)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(3, 32, 5, 5)
    torch.testing.assert_close(norm(x[:, :16]), norm(x)[:, :16])  # no group sees another
    plain, share = norm.cut(Fraction(1, 2), 0.5)
    assert (plain.num_groups, plain.num_channels, share) == (2, 16, Fraction(1, 2))
    torch.testing.assert_close(plain(x[:, :16]), norm(x)[:, :16])
    with pytest.raises(InputError, match="12 channels come, expected a multiple of 8"):
        norm(x[:, :12])


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"elementwise_affine": False}])
def test_a_layer_norm_is_over_what_is_there(settings: dict[str, bool]) -> None:
    norm = SlimmableLayerNorm(20, **settings)
    x = torch.randn(3, 7, 8)
    expected = F.layer_norm(x, (8,)) * (1 if norm.weight is None else norm.weight[:8])
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.cut(Fraction(8, 20), 0.4)[0](x), expected)


def test_each_width_has_statistics_scales_and_offsets_of_its_own() -> None:
    plain = nn.BatchNorm2d(32, eps=1e-3, momentum=0.2)
    norm = SwitchableBatchNorm(plain, {0.25: Fraction(1, 4), 1.0: Fraction(1)})
    x = 3 + torch.randn(4, 32, 5, 5)
    torch.testing.assert_close(norm(x, 1.0), plain(x))
    assert torch.equal(norm.norms["1"].running_mean, plain.running_mean)
    assert not norm.norms["0_25"].running_mean.any() and norm.norms["0_25"].eps == 1e-3
    norm(x[:, :8] * 2, 0.25)
    torch.testing.assert_close(norm.norms["0_25"].running_mean, 2 * plain.running_mean[:8])
    assert norm.cut(Fraction(1, 4), 0.25)[0] is not norm.norms["0_25"]
    with pytest.raises(InputError, match=r"no width 0\.5, expected one of 0\.25, 1"):
        norm(x, 0.5)
    with pytest.raises(InputError, match=r"8 channels at width 0\.25, and 32 come"):
        norm(x, 0.25)


def test_a_recalibrated_norm_trains_at_any_width_and_refuses_to_evaluate() -> None:
    plain = nn.BatchNorm1d(24)
    norm = RecalibratedBatchNorm.of(plain)
    x = torch.randn(9, 16)
    torch.testing.assert_close(norm(x), F.batch_norm(x, None, None, norm.weight[:16], norm.bias[:16], training=True))
    assert norm.weight is plain.weight and not norm.running_mean.any() and norm.num_batches_tracked == 0
    cut, _ = norm.cut(Fraction(16, 24), 0.5)
    assert type(cut) is nn.BatchNorm1d and cut.num_features == 16
    with pytest.raises(InputError, match="extract a configuration and recalibrate it"):
        norm.eval()(x)


def test_a_depthwise_convolution_may_not_begin_a_stage_with_a_switchable_norm() -> None:
    stages = [nn.Sequential(nn.Conv2d(1, 32, 1)), nn.Sequential(nn.Conv2d(32, 32, 3, groups=32), nn.BatchNorm2d(32))]
    network = Slimmable(nn.Sequential(*stages, nn.Conv2d(32, 3, 1)))
    x = torch.randn(2, 1, 5, 5)
    assert network(x, 0.5).shape == (2, 3, 3, 3)
    with pytest.raises(InputError, match="belongs into the stage of the layer before"):
        network(x, (0.5, 1.0))
