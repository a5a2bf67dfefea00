"""From plain modules to slimmable ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, TypeAlias

from torch import nn

from polytask.errors import InputError
from polytask.share.slimmable.containers import Residual, SlimmableResidual, SlimmableSequential
from polytask.share.slimmable.layers import SlimmableConv2d, SlimmableLinear, become
from polytask.share.slimmable.norms import (
    RecalibratedBatchNorm,
    SlimmableGroupNorm,
    SlimmableLayerNorm,
    SwitchableBatchNorm,
)

BatchNorms: TypeAlias = Literal["switchable", "recalibrated"]


class Conversion:
    """Makes the modules of a plain chain slimmable, one after another in the order in which they run.

    Args:
        network: the chain; its containers are changed in place.
        widths, batch_norm, multiple: as for `polytask.share.Slimmable`.
    """

    def __init__(self, network: nn.Sequential, widths: Sequence[float], batch_norm: BatchNorms, multiple: int) -> None:
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        inside = {id(layer) for part in network.modules() if isinstance(part, Residual) for layer in part.modules()}
        if not layers or id(layers[-1]) in inside:
            raise InputError("slimmable: the network's last layer is no nn.Conv2d or nn.Linear outside a Residual")
        sizes = [part.num_channels // part.num_groups for part in network.modules() if isinstance(part, nn.GroupNorm)]
        self.last = layers[-1]
        self.batch_norm, self.multiple = batch_norm, math.lcm(multiple, *sizes)
        self.shares = {float(width): Fraction(1) for width in sorted({*widths, 1.0})}  # of the channels that come, by width

    def __call__(self, module: nn.Module, name: str) -> nn.Module:
        """The slimmable form of ``module``, or itself when it has no parameters; ``name`` is for errors."""
        match module:
            case nn.Conv2d() | nn.Linear() if type(module) in (nn.Conv2d, nn.Linear):
                return self._layer(module, name)
            case nn.GroupNorm():
                return become(module, SlimmableGroupNorm)
            case nn.LayerNorm() if len(module.normalized_shape) == 1:
                return become(module, SlimmableLayerNorm)
            case nn.BatchNorm1d() | nn.BatchNorm2d() if self.batch_norm == "switchable":
                return SwitchableBatchNorm(module, self.shares)
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                return RecalibratedBatchNorm.of(module)
            case nn.Sequential():
                for child_name, child in module.named_children():
                    setattr(module, child_name, self(child, f"{name}.{child_name}"))
                return become(module, SlimmableSequential)
            case Residual():
                before = self.shares
                module.shortcut = self(module.shortcut, f"{name}.shortcut")
                self.shares = before
                module.body = self(module.body, f"{name}.body")
                return become(module, SlimmableResidual)
        if any(True for _ in module.parameters()):
            raise InputError(
                f"slimmable: {name!r} is a {type(module).__name__}, expected Conv2d, Linear, BatchNorm, GroupNorm, "
                "LayerNorm, Sequential or Residual, or a module without parameters"
            )
        return module

    def _layer(self, layer: nn.Conv2d | nn.Linear, name: str) -> nn.Module:
        settings = {"fixed": layer is self.last, "multiple": self.multiple}
        if isinstance(layer, nn.Linear):
            made: SlimmableConv2d | SlimmableLinear = become(layer, SlimmableLinear, **settings)
        else:
            _check(layer, name, last=layer is self.last)
            made = become(layer, SlimmableConv2d, **settings)
            if made.depthwise:
                return made
        channels = made.outputs(1.0)
        self.shares = {width: Fraction(made.outputs(width), channels) for width in self.shares}
        return made


def _check(layer: nn.Conv2d, name: str, last: bool) -> None:
    depthwise = layer.groups == layer.in_channels == layer.out_channels and not last
    if layer.groups != 1 and not depthwise:
        raise InputError(
            f"slimmable: {name!r} is a convolution of {layer.groups} groups, {layer.in_channels} to {layer.out_channels} "
            "channels, expected 1 group, or as many groups and outputs as inputs and another layer after it"
        )
    if layer.padding_mode != "zeros":
        raise InputError(f"slimmable: {name!r} has padding mode {layer.padding_mode!r}, expected 'zeros'")
