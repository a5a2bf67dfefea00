"""Banks of layers and of experts: many small networks by a few large products."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rectified(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer in front of a ReLU, whose weights begin by the rule of He et al., *Delving deep into rectifiers*, ICCV
    2015: what passes through many such layers keeps its scale. A bias begins at 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


class Bank(nn.Module):
    """``count`` linear layers, each with an input of its own: ``(count, N, inputs)`` to ``(count, N, outputs)``.

    They begin as `rectified` layers do.
    """

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(count, 1, outputs))
        for layer in self.weight:
            nn.init.kaiming_uniform_(layer.data.T, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias.to(x.dtype), x, self.weight.to(x.dtype))


class Experts(nn.Module):
    """``count`` experts that read the same input, ``(N, width)``, and give ``(count, N, width)``.

    An expert is one hidden layer of width ``hidden`` and one output layer, with ReLU after each.
    """

    def __init__(self, count: int, width: int, hidden: int) -> None:
        super().__init__()
        self.count = count
        self.hidden = rectified(width, count * hidden)
        self.output = Bank(count, hidden, width)

    def forward(self, rows: Tensor) -> Tensor:
        hidden: Tensor = self.hidden(rows).relu().unflatten(1, (self.count, -1)).transpose(0, 1)
        outputs: Tensor = self.output(hidden).relu()
        return outputs


def mix(gate: Tensor, *outputs: Tensor) -> Tensor:
    """Each row's own mixture of experts, ``(N, width)``.

    Args:
        gate: ``(N, E)``, the weights of all experts.
        outputs: of one bank of experts or several, ``(e, N, width)`` each, ``E`` experts in all.
    """
    shares = gate.split_with_sizes([len(bank) for bank in outputs], 1)
    mixed = [torch.einsum("ne,enw->nw", g.to(bank.dtype), bank) for g, bank in zip(shares, outputs, strict=True)]
    return torch.stack(mixed).sum(0) if len(mixed) > 1 else mixed[0]
