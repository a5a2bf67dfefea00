"""What a configuration costs: multiply-accumulate operations, counted without computing anything."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polytask.share.slimmable.chain import Widths
from polytask.share.slimmable.configuration import Configuration
from polytask.share.slimmable.supernet import Supernet


def macs(network: nn.Module, *inputs: Any) -> int:
    """The multiply-accumulate operations of ``network(*inputs)``: of convolutions and matrix products, as papers count.

    Args:
        network: any module; its weights are neither read nor copied.
        inputs: tensors, of which the shapes count, and other arguments.

    >>> macs(nn.Conv2d(3, 8, 3, padding=1), torch.empty(1, 3, 10, 10))
    21600
    """
    return _run(network, *inputs)[0]


class Costs:
    """The table of costs of a supernet: the multiply-accumulate operations of its encoder and decoders at each width.

    Since the encoder gives the same channels at every width, a decoder costs the same behind every encoder, and a
    configuration costs the sum of its parts.

    Args:
        supernet: the network; its weights are neither read nor copied.
        inputs: what to count for, such as one image ``(1, C, H, W)``; only the shape counts.
    """

    def __init__(self, supernet: Supernet, inputs: Tensor) -> None:
        self.supernet, self.inputs = supernet, inputs.to("meta")
        self.features = _run(supernet.encoder, self.inputs)[1]
        self._encoders: dict[Widths, int] = {}
        self._decoders: dict[tuple[str, float], int] = {}

    def encoder(self, widths: Widths) -> int:
        """The cost of the encoder at these widths."""
        if widths not in self._encoders:
            self._encoders[widths] = _run(self.supernet.encoder, self.inputs, widths)[0]
        return self._encoders[widths]

    def decoder(self, task: str, width: float) -> int:
        """The cost of a task's decoder at a width."""
        if (task, width) not in self._decoders:
            self._decoders[task, width] = _run(self.supernet.decoders[task], self.features, width)[0]
        return self._decoders[task, width]

    def __call__(self, configuration: Configuration) -> int:
        """The cost of a configuration."""
        decoders = (self.decoder(task, width) for task, width in configuration.decoders.items())
        return self.encoder(configuration.encoder) + sum(decoders)


def _run(network: nn.Module, *inputs: Any) -> tuple[int, Any]:
    """The operations in evaluation mode, and the output on the meta device."""
    tensors: list[Tensor] = [*network.parameters(), *network.buffers()]
    shapes = copy.deepcopy(network, {id(tensor): tensor.detach().to("meta") for tensor in tensors})
    arguments = [argument.to("meta") if isinstance(argument, Tensor) else argument for argument in inputs]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = shapes.eval()(*arguments)
    return counter.get_total_flops() // 2, output
