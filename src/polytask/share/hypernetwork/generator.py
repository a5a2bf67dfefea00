"""The generator: from contexts to numbers."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from polytask.share.hypernetwork.architectures import ACTIVATIONS, Architecture, Fan


class Generator(nn.Module):
    """Contexts to numbers: the body, then one linear layer, or several heads that make a part each.

    Args:
        architecture: of the body.
        width: of a context.
        shape: ``(n, size)``, how many components each context has, and how many numbers each of them becomes.
        embedding: the width of the components' embeddings, joined to the context; 0 for none.
        heads: how many heads; above 1 each has a hidden layer of its own, of the features' width divided by their number.
        fan: of the initial weights.
        bias: whether the last layer has one.
    """

    def __init__(
        self,
        architecture: Architecture,
        width: int,
        shape: tuple[int, int],
        embedding: int,
        heads: int,
        fan: Fan,
        bias: bool,
    ) -> None:
        super().__init__()
        (self.n, self.size), self.fan, self.spectral = shape, fan, architecture.spectral
        self.components = nn.Parameter(torch.randn(self.n, embedding)) if embedding else None
        self.body = architecture.build(width + embedding, fan)
        features = self.body.features
        self.hidden = nn.ModuleList()
        if heads > 1:
            features = max(1, features // heads)
            layers = [architecture.linear(self.body.features, features, fan) for _ in range(heads)]
            self.hidden.extend(nn.Sequential(layer, ACTIVATIONS[architecture.activation]()) for layer in layers)
        self.last = nn.ModuleList(nn.Linear(features, math.ceil(self.size / heads), bias=bias) for _ in range(heads))

    @property
    def dtype(self) -> torch.dtype:
        """The type in which numbers are made."""
        return next(self.last.parameters()).dtype

    def forward(self, contexts: Tensor) -> Tensor:
        """``(C, width)``, or ``(C, n, width)``, to ``(C, n, size)``, all in one pass through the layers."""
        x = contexts[:, None].expand(-1, self.n, -1) if contexts.dim() == 2 else contexts
        if self.components is not None:
            x = torch.cat([x, self.components.expand(len(x), -1, -1)], -1)
        features = self.body(x)
        read = [hidden(features) for hidden in self.hidden] or [features]
        parts = [last(each) for last, each in zip(self.last, read, strict=True)]
        return torch.cat(parts, -1)[..., : self.size] if len(parts) > 1 else parts[0]

    def norm(self, square: float) -> float:
        """The sum of squares of what the last layer reads at first, about, from the mean square of a context."""
        joined = 0 if self.components is None else self.components.shape[1]
        width = self.body.width - joined
        norm = self.body.norm((width * square + joined) / (width + joined))
        return norm / max(1, len(self.hidden)) if self.fan == "fan_in" else norm

    @torch.no_grad()
    def start(self, variances: Tensor, norm: float) -> None:
        """Give the last layer weights with which the numbers have these variances at first, ``(n, size)``, about.

        A row that makes numbers of several components gets the mean of their variances; NaN says that a number is not used.
        """
        stds = (variances.nanmean(0).nan_to_num(0) / norm).sqrt()
        layers = [cast(nn.Linear, last) for last in self.last]
        stds = nn.functional.pad(stds, (0, sum(last.out_features for last in layers) - self.size))
        for last, std in zip(layers, torch.split(stds, [last.out_features for last in layers]), strict=True):
            last.weight.copy_(torch.randn_like(last.weight) * std[:, None].to(last.weight))
            if last.bias is not None:
                last.bias.zero_()
        if self.spectral:
            for layer in [layer for layer in self.modules() if isinstance(layer, nn.Linear)]:
                spectral_norm(layer)
