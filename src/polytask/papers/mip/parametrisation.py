"""The four parametrisations that the paper compares, and the networks that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from polytask.errors import InputError, suggest
from polytask.share.hypernetwork import MLP, Context, FanOut, HyperNetwork

PARAMETRISATIONS: dict[str, dict[str, Any]] = {
    "default": {"encode": "none", "residual": False},
    "encoded": {"encode": "cos_sin", "residual": False},
    "residual": {"encode": "none", "residual": True},
    "mip": {"encode": "cos_sin", "residual": True},
}
"""By name: ``theta = h(gamma)``; with the input encoded; with the output added to ``theta_0``; and both, the paper's."""


def parametrised(
    target: nn.Module,
    context: Context,
    parametrisation: str = "mip",
    hidden: Sequence[int] = (16, 128),
    **settings: Any,
) -> HyperNetwork:
    """A hypernetwork with the paper's defaults: fully connected, LeakyReLU of slope 0.01, initial weights by fan-out.

    Args:
        target: the primary network; its weights are ``theta_0`` (see `kaiming`), a trained network's too.
        context: usually ``Values(d)``, numbers from 0 to 1.
        parametrisation: of `PARAMETRISATIONS`; ``"mip"`` by default.
        hidden: the generator's layers. Those of the paper's experiments are not known here; the authors' library shows
            (16, 64, 128).
        settings: other arguments of `HyperNetwork`.
    """
    if parametrisation not in PARAMETRISATIONS:
        raise InputError(f"unknown parametrisation {parametrisation!r}: {suggest(parametrisation, PARAMETRISATIONS)}")
    architecture = MLP(tuple(hidden), "leaky_relu")
    return HyperNetwork(target, context, architecture, **{"start": FanOut()} | PARAMETRISATIONS[parametrisation] | settings)


@torch.no_grad()
def kaiming(network: nn.Module) -> nn.Module:
    """``theta_0`` as the authors' library starts it: normal, of Kaiming's variance for LeakyReLU and the fan-in, biases 0.

    Their library leaves normalisations' gains without a valid start; here they stay as they are.
    """
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, a=0.01)
        elif name.endswith("bias"):
            parameter.zero_()
    return network


class ConvEncoder(nn.Sequential):
    """The convolutions of the library's network for MNIST, ``(N, 1, 28, 28)`` -> ``(N, 64)``: 60,480 weights to predict.

    5x5 with 16 channels, then 3x3 with 32, 64 and 64, LeakyReLU after each, the first two halved by pooling, the mean over
    the image. The channels are the library's; its strides and pooling are not known here, and change no count.
    """

    width = 64

    def __init__(self) -> None:
        channels = [(1, 16, 5), (16, 32, 3), (32, 64, 3), (64, 64, 3)]
        layers: list[nn.Module] = []
        for i, (before, after, size) in enumerate(channels):
            layers += [nn.Conv2d(before, after, size, padding=size // 2), nn.LeakyReLU()]
            layers += [nn.MaxPool2d(2)] if i < 2 else []
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
