"""What a configuration costs: multiply-accumulate operations, counted without computing anything."""

from __future__ import annotations

from torch import Tensor

from polytask.cost import macs
from polytask.cost.counting import run_counted
from polytask.share.slimmable.chain import Widths
from polytask.share.slimmable.configuration import Configuration
from polytask.share.slimmable.supernet import Supernet


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
        self.features = run_counted(supernet.encoder, self.inputs)[1]
        self._encoders: dict[Widths, int] = {}
        self._decoders: dict[tuple[str, float], int] = {}

    def encoder(self, widths: Widths) -> int:
        """The cost of the encoder at these widths."""
        if widths not in self._encoders:
            self._encoders[widths] = macs(self.supernet.encoder, self.inputs, widths)
        return self._encoders[widths]

    def decoder(self, task: str, width: float) -> int:
        """The cost of a task's decoder at a width."""
        if (task, width) not in self._decoders:
            self._decoders[task, width] = macs(self.supernet.decoders[task], self.features, width)
        return self._decoders[task, width]

    def __call__(self, configuration: Configuration) -> int:
        """The cost of a configuration."""
        decoders = (self.decoder(task, width) for task, width in configuration.decoders.items())
        return self.encoder(configuration.encoder) + sum(decoders)
