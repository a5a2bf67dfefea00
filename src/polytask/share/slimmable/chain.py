"""A network that runs at any of several widths: a plain chain of layers becomes slimmable, and is cut to a width again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

from torch import Tensor, nn

from polytask.errors import InputError
from polytask.share.slimmable.containers import SlimmableResidual, SlimmableSequential, cut, run
from polytask.share.slimmable.conversion import BatchNorms, Conversion
from polytask.share.slimmable.layers import WIDTHS, SlimmableConv2d, SlimmableLinear

Widths: TypeAlias = float | tuple[float, ...]
"""One relative width for a whole network, or one for each of its stages."""


class Slimmable(nn.Sequential):
    """A chain of layers that runs at several relative widths with one set of weights (Yu et al., *Slimmable neural
    networks*, ICLR 2019).

    At width ``w`` each layer uses the first ``ceil8(w C)`` of its ``C`` channels, so that a narrower network is part of each
    wider one. At width 1 it computes what the plain network does, bit by bit; but for switchable norms its parameters have
    the plain network's names. The width is an argument: nothing is switched, and threads may run several widths at once.

    What can be slimmed: ``nn.Conv2d`` of one group or depthwise, ``nn.Linear``, ``nn.BatchNorm1d``, ``nn.BatchNorm2d``,
    ``nn.GroupNorm``, ``nn.LayerNorm`` over the last dimension, in ``nn.Sequential`` and `Residual`; between them modules
    without parameters that treat all channels alike (activations, pooling, dropout, ``nn.Flatten``, ``nn.Upsample``). The
    last convolution or linear layer gives all its channels at every width, and so does the network.

    Its stages, which may have widths of their own, are its children that are a ``Sequential``, a `Residual`, a convolution
    or a linear layer. Other children, depthwise convolutions and the last layer belong to the stage before them.

    Args:
        network: the plain chain; it is copied.
        widths: the widths that switchable norms have statistics for; all else takes any width.
        batch_norm: ``"switchable"`` (default), a batch norm for each width: see `SwitchableBatchNorm`; ``"recalibrated"``,
            one whose statistics are measured for what is extracted: see `RecalibratedBatchNorm`.
        multiple: numbers of channels are multiples of this, 8 by default, and of the group sizes of all group norms.

    Attributes:
        stages: how many stages there are.
        width: the features that it gives.

    >>> import torch
    >>> chain = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> network, x = Slimmable(chain), torch.randn(5, 3)
    >>> torch.equal(network(x), chain(x)), network.stages
    (True, 2)
    >>> small = network.extract((0.25, 0.5))
    >>> small
    Sequential(
      (0): Linear(in_features=3, out_features=16, bias=True)
      (1): ReLU()
      (2): Linear(in_features=16, out_features=16, bias=True)
      (3): ReLU()
      (4): Linear(in_features=16, out_features=2, bias=True)
    )
    >>> torch.allclose(small(x), network(x, (0.25, 0.5)))
    True
    """

    def __init__(
        self,
        network: nn.Sequential,
        widths: Sequence[float] = WIDTHS,
        batch_norm: BatchNorms = "switchable",
        multiple: int = 8,
    ) -> None:
        super().__init__()
        if batch_norm not in ("switchable", "recalibrated"):
            raise InputError(f"slimmable: batch_norm {batch_norm!r}, expected 'switchable' or 'recalibrated'")
        plain = copy.deepcopy(network)
        conversion = Conversion(plain, widths, batch_norm, multiple)
        for name, child in plain.named_children():
            self.add_module(name, conversion(child, name))
        begun = [_begins_stage(child) for child in self]
        self.stages = max(sum(begun), 1)
        self.stage_of = [max(sum(begun[: place + 1]) - 1, 0) for place in range(len(begun))]
        last = conversion.last
        self.width: int = last.out_channels if isinstance(last, nn.Conv2d) else last.out_features
        self.train(network.training)

    def forward(self, x: Tensor, widths: Widths = 1.0) -> Tensor:
        """The output at a width, or at a width for each stage."""
        each = self._each(widths)
        for child, stage in zip(self, self.stage_of, strict=True):
            x = run(child, x, each[stage])
        return x

    def extract(self, widths: Widths = 1.0) -> nn.Sequential:
        """The network of these widths by itself: plain layers with copies of the weights, under the same names."""
        each, share, plain = self._each(widths), Fraction(1), nn.Sequential()
        for (name, child), stage in zip(self.named_children(), self.stage_of, strict=True):
            module, share = cut(child, share, each[stage])
            plain.add_module(name, module)
        return plain.train(self.training)

    def _each(self, widths: Widths) -> tuple[float, ...]:
        each = widths if isinstance(widths, tuple) else (float(widths),) * self.stages
        if len(each) != self.stages or not all(0 < width <= 1 for width in each):
            raise InputError(f"widths {widths}, expected a number above 0 up to 1, or {self.stages}, one for each stage")
        return each


def _begins_stage(child: nn.Module) -> bool:
    if isinstance(child, SlimmableConv2d):
        return not (child.fixed or child.depthwise)
    if isinstance(child, SlimmableLinear):
        return not child.fixed
    return isinstance(child, SlimmableSequential | SlimmableResidual)
