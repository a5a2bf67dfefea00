"""The generator's body: what turns contexts into the features that weights are made of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from polytask.errors import InputError, suggest

Fan = Literal["fan_in", "fan_out"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,  # slope 0.01
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


class Body(nn.Module, ABC):
    """``(C, n, width)``, ``n`` components of each of ``C`` contexts, to features ``(C, n, features)``.

    Attributes:
        width, features: how many numbers it takes, and gives.
    """

    width: int
    features: int

    @abstractmethod
    def norm(self, square: float) -> float:
        """The sum of the features' squares at first, about, from the mean square of the inputs."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...


class Architecture(ABC):
    """The body's architecture, as plain settings.

    Attributes:
        activation: the non-linearity, also of the heads of `polytask.share.hypernetwork.Heads`.
        spectral: whether every linear layer, the last one too, is divided by its spectral norm.
    """

    activation: str = "relu"
    spectral: bool = False

    @abstractmethod
    def build(self, width: int, fan: Fan) -> Body:
        """The body for inputs of ``width``; linear layers start with Kaiming's variance for the ``fan``, biases at 0."""

    def linear(self, inputs: int, outputs: int, fan: Fan = "fan_in", bias: bool = True) -> nn.Linear:
        """A linear layer that keeps the mean square (``"fan_in"``) or the norm (``"fan_out"``) before the activation."""
        layer = nn.Linear(inputs, outputs, bias=bias)
        nn.init.normal_(layer.weight, std=self.gain / math.sqrt(inputs if fan == "fan_in" else outputs))
        if bias:
            nn.init.zeros_(layer.bias)
        return layer

    @property
    def gain(self) -> float:
        """Kaiming's factor for the activation; that of ReLU where there is none of its own."""
        return {"leaky_relu": math.sqrt(2 / (1 + 0.01**2)), "tanh": 5 / 3}.get(self.activation, math.sqrt(2))


@dataclass(frozen=True)
class MLP(Architecture):
    """Fully connected layers; each component is by itself.

    Args:
        hidden: their widths, (100, 100) by default; none for a generator that is linear.
        activation: ``"relu"`` (default), ``"leaky_relu"`` (slope 0.01), ``"tanh"``, ``"silu"`` or ``"gelu"``.
        dropout: behind each activation; 0 by default.
        spectral: divide every linear layer, also the last, by its spectral norm, which keeps training stable.
    """

    hidden: Sequence[int] = (100, 100)
    activation: str = "relu"
    dropout: float = 0.0
    spectral: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise InputError(f"MLP: unknown activation {self.activation!r}: {suggest(self.activation, ACTIVATIONS)}")
        if any(width < 1 for width in self.hidden) or not 0 <= self.dropout < 1:
            raise InputError(f"MLP: hidden {self.hidden}, dropout {self.dropout}, expected widths of 1 up, 0 to below 1")

    def build(self, width: int, fan: Fan) -> Body:
        layers: list[nn.Module] = []
        for before, after in pairwise([width, *self.hidden]):
            layers += [self.linear(before, after, fan), ACTIVATIONS[self.activation]()]
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
        return Perceptron(nn.Sequential(*layers), width, [width, *self.hidden][-1], fan)


class Perceptron(Body):
    """The layers of an `MLP`."""

    def __init__(self, layers: nn.Sequential, width: int, features: int, fan: Fan) -> None:
        super().__init__()
        self.layers, self.width, self.features, self.fan = layers, width, features, fan

    def norm(self, square: float) -> float:
        return square * (self.features if self.fan == "fan_in" else self.width)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features


@dataclass(frozen=True)
class LSTM(Architecture):
    """An LSTM that reads the components one after the other, layer by layer, with layer normalisation of what it gives.

    Args:
        hidden: its width; 64 by default.
        layers: how many; 1 by default.
    """

    hidden: int = 64
    layers: int = 1

    def build(self, width: int, fan: Fan) -> Body:
        return Recurrent(width, self.hidden, self.layers)


class Recurrent(Body):
    """The layers of an `LSTM`."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.width, self.features = width, hidden
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True)
        self.last = nn.LayerNorm(hidden)

    def norm(self, square: float) -> float:
        return float(self.features)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.last(self.lstm(x)[0])
        return features


@dataclass(frozen=True)
class Attention(Architecture):
    """A transformer's encoder, in which the components of a context attend to one another; in any order.

    Args:
        hidden: its width; 64 by default.
        layers: how many, with feed-forward networks four times as wide; 2 by default.
        heads: attention heads; 4 by default.
        dropout: 0 by default.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise InputError(f"Attention: hidden {self.hidden}, expected a multiple of {self.heads} heads")

    def build(self, width: int, fan: Fan) -> Body:
        return Attentive(width, self)


class Attentive(Body):
    """The layers of an `Attention`."""

    def __init__(self, width: int, settings: Attention) -> None:
        super().__init__()
        hidden = settings.hidden
        self.width, self.features = width, hidden
        self.first = nn.Linear(width, hidden)
        layer = nn.TransformerEncoderLayer(
            hidden, settings.heads, 4 * hidden, settings.dropout, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(hidden), enable_nested_tensor=False)

    def norm(self, square: float) -> float:
        return float(self.features)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(self.first(x))
        return features
