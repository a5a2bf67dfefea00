"""Layers of which the first channels are a narrower layer, so that the weights of all widths are nested.

A layer is called with its width, and reads from its input how many channels came: nothing is switched, and threads may run
one network at several widths at once.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from fractions import Fraction
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)

WIDTHS = (0.25, 0.5, 0.75, 1.0)
"""The relative widths by default, smallest first; those of the papers are finer, or not known."""


def narrowed(channels: int, width: float, multiple: int = 8) -> int:
    """How many of ``channels`` a relative ``width`` uses: ``width * channels`` rounded up to a multiple, at most all.

    >>> [narrowed(96, width) for width in (0.25, 0.3, 0.5, 1.0)], narrowed(3, 0.5)
    ([24, 32, 48, 96], 3)
    """
    return min(channels, multiple * math.ceil(width * channels / multiple - 1e-9))


class SlimmableLayer(nn.Module):
    """What every slimmable module is: it runs at a width, and can be cut to one."""

    @abstractmethod
    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        """The layer on the channels that ``x`` has, giving the first channels of its own that ``width`` asks for."""

    @abstractmethod
    def cut(self, share: Fraction, width: float) -> tuple[nn.Module, Fraction]:
        """The plain module of this width, with copies of the weights, for inputs of which this share of the channels come;
        and the share of its own channels that it gives."""


class SlimmableConv2d(SlimmableLayer, nn.Conv2d):
    """``nn.Conv2d``, one group or depthwise; a depthwise convolution has as many channels as its input.

    Attributes:
        fixed: whether it gives all its channels at every width.
        multiple: what the number of channels is a multiple of, unless it is all of them.
    """

    fixed = False
    multiple = 8

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        weight, bias = self._first(x.shape[1], width)
        groups = x.shape[1] if self.depthwise else 1
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def cut(self, share: Fraction, width: float) -> tuple[nn.Module, Fraction]:
        inputs = int(share * self.in_channels)
        weight, bias = self._first(inputs, width)
        sizes = self.kernel_size, self.stride, self.padding, self.dilation, inputs if self.depthwise else 1
        plain = nn.Conv2d(inputs, len(weight), *sizes, bias=bias is not None, device="meta")  # type: ignore[arg-type]
        return copied(plain, weight=weight, bias=bias), Fraction(len(weight), self.out_channels)

    def outputs(self, width: float) -> int:
        """How many channels it gives; a depthwise one as many as come."""
        return self.out_channels if self.fixed else narrowed(self.out_channels, width, self.multiple)

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved by itself."""
        return self.groups > 1

    def _first(self, inputs: int, width: float) -> tuple[Tensor, Tensor | None]:
        outputs = inputs if self.depthwise else self.outputs(width)
        return self.weight[:outputs, :inputs], None if self.bias is None else self.bias[:outputs]


class SlimmableLinear(SlimmableLayer, nn.Linear):
    """``nn.Linear`` on the last dimension, behind ``nn.Flatten`` too: its channels come first there. Attributes as above."""

    fixed = False
    multiple = 8

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        return F.linear(x, *self._first(x.shape[-1], width))

    def cut(self, share: Fraction, width: float) -> tuple[nn.Module, Fraction]:
        weight, bias = self._first(int(share * self.in_features), width)
        plain = nn.Linear(weight.shape[1], len(weight), bias is not None, device="meta")
        return copied(plain, weight=weight, bias=bias), Fraction(len(weight), self.out_features)

    def outputs(self, width: float) -> int:
        """How many features it gives."""
        return self.out_features if self.fixed else narrowed(self.out_features, width, self.multiple)

    def _first(self, inputs: int, width: float) -> tuple[Tensor, Tensor | None]:
        outputs = self.outputs(width)
        return self.weight[:outputs, :inputs], None if self.bias is None else self.bias[:outputs]


def become(layer: nn.Module, kind: type[Layer], **settings: Any) -> Layer:
    """``layer`` as a module of ``kind``, a subclass of its own class, with the same parameters under the same names."""
    made: Any = copy.copy(layer)
    made.__class__ = kind
    made.__dict__.update(settings)
    return made  # type: ignore[no-any-return]


def copied(plain: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """``plain``, which was made on the meta device, with copies of ``tensors`` for its parameters and buffers."""
    for name, tensor in tensors.items():
        if tensor is not None:
            value = tensor.detach().clone(memory_format=torch.contiguous_format)
            setattr(plain, name, nn.Parameter(value) if name in plain._parameters else value)
    return plain
