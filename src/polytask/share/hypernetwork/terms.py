"""Terms of a hypernetwork's loss: what it made before is kept, or what it makes of noise is spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polytask.share.hypernetwork.hypernetwork import HyperNetwork


class Remembered(nn.Module):
    """The weights for some conditions as they are now; a penalty for changing them, ``beta mean_t |theta_t - theta_t*|^2``.

    Von Oswald, Henning, Sacramento and Grewe, *Continual learning with hypernetworks*, ICLR 2020: while task ``T`` is
    learned, the ``T - 1`` before it are remembered. With it in `HyperNetwork.terms` a `polytask.Model` adds it to its
    losses; a loop of your own calls it with the hypernetwork. Only predicted weights are remembered: freeze others that the
    tasks share.

    Args:
        hypernetwork: what makes the weights.
        condition: as `HyperNetwork.weights` takes it, such as the names of tasks that were learned.
        beta: 0.01 by default, which is usual; the paper's own choices differ between its experiments.
    """

    def __init__(self, hypernetwork: HyperNetwork, condition: Any, beta: float = 0.01) -> None:
        super().__init__()
        self.condition, self.beta = condition, beta
        with torch.no_grad():
            self.register_buffer("weights", _Made(hypernetwork)(condition))
        self.weights: Tensor

    def forward(self, hypernetwork: HyperNetwork, step: Mapping[str, Tensor] | None = None) -> Tensor:
        """The penalty, a scalar; 0 when it is made, with gradient 0.

        Args:
            hypernetwork: the same one.
            step: a candidate change of its parameters, by name, which is looked ahead by (the paper's ``Delta Phi``).
        """
        made = _Made(hypernetwork)
        ahead = dict(hypernetwork.named_parameters())
        changed = {f"of.{name}": ahead[name] + change for name, change in (step or {}).items()}
        now = functional_call(made, changed, (self.condition,))
        penalty: Tensor = self.beta * (now - self.weights).square().sum(1).mean()
        return penalty


class Spread(nn.Module):
    """Keeps what is made of noise from being one network: ``weight * sum KL(N(mean, variance) || N(0, std^2))``.

    Mean and variance are those of each weight over ``samples`` networks: as if weights were independent and normal, which
    they are not. So it has the form of variational inference's penalty, and is no bound on a likelihood.

    Args:
        std: of the prior of every weight; 0.1 by default.
        weight: usually 1 / the number of training examples.
        samples: networks for each evaluation; 8 by default.
    """

    def __init__(self, weight: float, std: float = 0.1, samples: int = 8) -> None:
        super().__init__()
        self.weight, self.std, self.samples = weight, std, samples

    def forward(self, hypernetwork: HyperNetwork) -> Tensor:
        """The penalty, a scalar."""
        made = _Made(hypernetwork)(self.samples) / self.std
        variance, mean = torch.var_mean(made, 0)
        return self.weight * 0.5 * (variance + mean.square() - 1 - variance.clamp(min=1e-12).log()).sum()


class _Made(nn.Module):
    """The weights as a module's output, ``(C, P)``, so that they can be asked for with other parameters."""

    def __init__(self, hypernetwork: HyperNetwork) -> None:
        super().__init__()
        self.of = hypernetwork

    def forward(self, condition: Any) -> Tensor:
        return self.of.layout.flatten(self.of.weights(condition)).to(self.of.generator.dtype)
