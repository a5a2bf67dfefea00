"""How large the predicted weights are at first: the initial weights of the generator's last layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from polytask.share.hypernetwork.architectures import Fan
from polytask.share.hypernetwork.layout import Entry


class Initialisation(ABC):
    """An initial scale of what is predicted, as plain settings.

    Attributes:
        fan: how the layers before the last one start, by Kaiming: ``"fan_in"`` keeps the mean square, ``"fan_out"`` the
            norm.
    """

    fan: ClassVar[Fan] = "fan_in"

    @abstractmethod
    def variance(self, entry: Entry, norm: float) -> float:
        """The variance of the numbers predicted for a parameter at first; ``norm`` is the sum of squares of the last
        layer's inputs, so that the weights of that layer have the variance divided by ``norm``."""


@dataclass(frozen=True)
class Zero(Initialisation):
    """Nothing is added at first: the target is the network that it was. For ``residual=True`` alone."""

    def variance(self, entry: Entry, norm: float) -> float:
        return 0.0


@dataclass(frozen=True)
class Hyperfan(Initialisation):
    """The target's weights begin with Kaiming's variance for their fan-in ``d_j``, biases and gains with 0 (and 1).

    Chang, Flokas and Lipson, *Principled weight initialization for hypernetworks*, ICLR 2020, hyperfan-in: the last layer's
    weights have the variance ``1 / (d_j d_k Var(e))``, with ``d_k`` features of variance ``Var(e)``; twice that for ReLU.

    Args:
        relu: whether the target has ReLU (default).
        biases: let predicted biases have half of the variance of the units that they belong to, so that weights get the
            other half. By default they begin at 0. Which of the two the authors prefer is not known here.
    """

    relu: bool = True
    biases: bool = False

    def variance(self, entry: Entry, norm: float) -> float:
        if len(entry.shape) < 2:
            return 0.5 if self.biases and not entry.gain else 0.0
        return (2 if self.relu else 1) / entry.fan_in / (2 if self.biases else 1)


@dataclass(frozen=True)
class FanOut(Initialisation):
    """Kaiming's variance by fan-out, for which each predicted tensor of ``n`` numbers is a layer of its own: the rows of the
    last layer have the variance ``gain^2 / n``, ``gain^2 = 2 / (1 + slope^2)``.

    That of Gonzalez Ortiz, Guttag and Dalca, *Magnitude invariant parametrizations improve hypernetwork learning*, ICLR
    2024, in the authors' library. Each tensor has about the same norm at first, ``gain`` times that of the encoded context.

    Args:
        slope: of the LeakyReLU; 0.01 by default.
    """

    fan: ClassVar[Fan] = "fan_out"
    slope: float = 0.01

    def variance(self, entry: Entry, norm: float) -> float:
        return 2 / (1 + self.slope**2) / entry.numel * norm
