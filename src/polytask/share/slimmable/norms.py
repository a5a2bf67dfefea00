"""Slimmable normalisation: statistics belong to a width, scales and offsets are those of the first channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.share.slimmable.layers import SlimmableLayer, become, copied


class SlimmableGroupNorm(SlimmableLayer, nn.GroupNorm):
    """``nn.GroupNorm`` with groups of constant size: those of a narrower layer are the first groups of the whole one."""

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        channels = x.shape[1]
        weight, bias = first(self.weight, channels), first(self.bias, channels)
        return F.group_norm(x, self._groups(channels), weight, bias, self.eps)

    def cut(self, share: Fraction, width: float) -> tuple[nn.Module, Fraction]:
        channels = int(share * self.num_channels)
        plain = nn.GroupNorm(self._groups(channels), channels, self.eps, self.affine, device="meta")
        return copied(plain, weight=first(self.weight, channels), bias=first(self.bias, channels)), share

    @property
    def size(self) -> int:
        """Channels in a group."""
        return self.num_channels // self.num_groups

    def _groups(self, channels: int) -> int:
        if channels % self.size:
            raise InputError(f"group norm: {channels} channels come, expected a multiple of {self.size}, its group's size")
        return channels // self.size


class SlimmableLayerNorm(SlimmableLayer, nn.LayerNorm):
    """``nn.LayerNorm`` over the last dimension: over the channels that are there."""

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        features = x.shape[-1]
        return F.layer_norm(x, (features,), first(self.weight, features), first(self.bias, features), self.eps)

    def cut(self, share: Fraction, width: float) -> tuple[nn.Module, Fraction]:
        features = int(share * self.normalized_shape[0])
        weight, bias = first(self.weight, features), first(self.bias, features)
        plain = nn.LayerNorm(features, self.eps, weight is not None, bias is not None, device="meta")
        return copied(plain, weight=weight, bias=bias), share


class RecalibratedBatchNorm(SlimmableLayer, nn.modules.batchnorm._BatchNorm):
    """A batch norm whose scales and offsets are nested; it has no statistics but those of the batch.

    It trains at any mixture of widths. To evaluate, the configuration is cut out and its statistics are measured
    (`polytask.share.recalibrate`); as long as that is not done, evaluation mode is an error (Yu and Huang, *Universally
    slimmable networks and improved training techniques*, ICCV 2019, Section 3.3).
    """

    plain: type[nn.Module]

    @staticmethod
    def of(norm: nn.Module) -> RecalibratedBatchNorm:
        """``norm``, an ``nn.BatchNorm1d`` or ``2d``, with its parameters."""
        return become(norm, RecalibratedBatchNorm, plain=type(norm))

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        if not (self.training or x.is_meta):  # where only shapes are asked for, statistics do not matter
            raise InputError(
                "a recalibrated batch norm has no statistics for evaluation: extract a configuration and recalibrate it"
            )
        channels = x.shape[1]
        return F.batch_norm(
            x, None, None, first(self.weight, channels), first(self.bias, channels), training=True, eps=self.eps
        )

    def cut(self, share: Fraction, width: float) -> tuple[nn.Module, Fraction]:
        channels = int(share * self.num_features)
        plain = self.plain(channels, self.eps, self.momentum, self.affine, self.track_running_stats, device="meta")
        names = ("weight", "bias", "running_mean", "running_var")
        found = {name: first(getattr(self, name), channels) for name in names}
        return copied(plain, **found, num_batches_tracked=self.num_batches_tracked), share


class SwitchableBatchNorm(SlimmableLayer):
    """A batch norm for each width, with scales, offsets and statistics of its own (Yu et al., *Slimmable neural networks*,
    ICLR 2019, Section 3.3).

    Right for networks in which one width holds throughout. Where it mixes widths before it, as decoders behind encoders of
    several widths do, its statistics are an average: recalibrate what is cut out.

    Args:
        norm: the plain norm of all channels, an ``nn.BatchNorm1d`` or ``2d``: each width starts with its first channels.
        shares: the widths that can be asked for, and which share of the channels each has here.
    """

    def __init__(self, norm: nn.Module, shares: Mapping[float, Fraction]) -> None:
        super().__init__()
        whole = RecalibratedBatchNorm.of(norm)
        self.norms = nn.ModuleDict({_key(width): whole.cut(share, width)[0] for width, share in shares.items()})

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        norm = self._norm(width)
        if x.shape[1] != norm.num_features:
            raise InputError(
                f"a switchable batch norm has {norm.num_features} channels at width {width:g}, and {x.shape[1]} come: "
                "a depthwise convolution belongs into the stage of the layer before it"
            )
        out: Tensor = norm(x)
        return out

    def cut(self, share: Fraction, width: float) -> tuple[nn.Module, Fraction]:
        return copy.deepcopy(self._norm(width)), share

    def _norm(self, width: float) -> Any:
        if _key(width) not in self.norms:
            known = ", ".join(key.replace("_", ".") for key in self.norms)
            raise InputError(f"a switchable batch norm has no width {width:g}, expected one of {known}")
        return self.norms[_key(width)]


def first(tensor: Tensor | None, channels: int) -> Tensor | None:
    """The first ``channels`` of a norm's parameter or buffer, which it may not have."""
    return None if tensor is None else tensor[:channels]


def _key(width: float) -> str:
    return f"{width:g}".replace(".", "_")
