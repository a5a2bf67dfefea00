"""Networks of one hidden layer, product units or sigmoid units, as tensors that a whole population can share.

Both kinds of unit are ``B_j(x) = g(sum_i w_ij phi_i(x))``: a product unit ``prod_i x_i^w_ij`` has ``phi = log`` and
``g = exp``; a sigmoid unit has ``phi = identity`` with a constant appended for its bias. What trains one, trains the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Units:
    """A kind of hidden unit.

    Attributes:
        name: ``"product"`` or ``"sigmoid"``.
        features: ``phi``, from inputs ``(N, I)`` to ``(N, I + biases)``.
        activation: ``g``, elementwise.
        slope: the derivative of ``g`` in terms of its value.
        biases: how many constant features follow the inputs, 0 or 1.
        interval: the range to which training inputs are scaled, ``(low, high)``.
        bound: the largest absolute weight that training allows.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    biases: int
    interval: tuple[float, float]
    bound: float


def _with_constant(x: Tensor) -> Tensor:
    return nn.functional.pad(x, (0, 1), value=1.0)


UNITS = {
    units.name: units
    for units in (
        Units("product", torch.log, lambda z: z.clamp(max=200).exp(), lambda b: b, 0, (1.0, 2.0), 5.0),
        Units("sigmoid", _with_constant, torch.sigmoid, lambda b: b * (1 - b), 1, (0.1, 0.9), 50.0),
    )
}
"""The kinds of unit by name. Product units are bounded at 5 as in the paper: ``2^5`` for each input is enough. Products
beyond ``e^200`` are cut, so that their squares stay finite. A sigmoid saturates instead and needs steep weights, so its
bound is loose."""


@dataclass(frozen=True)
class Networks:
    """Any number of networks, as tensors with shared leading dimensions ``...`` (none for one network).

    ``f_k(x) = output_0k + sum_j output_jk B_j(x)``, with nodes that the tasks share.

    Attributes:
        weights: ``(..., I, M)``, exponents of product units; 0 where there is no link.
        links: ``(..., I, M)`` bool, which inputs a node has. A node that has none is absent.
        outputs: ``(..., 1 + M, K)``, the intercepts first; 0 for absent nodes.
    """

    weights: Tensor
    links: Tensor
    outputs: Tensor

    def __getitem__(self, index: int | slice | Tensor | None) -> Networks:
        return Networks(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def cat(networks: Sequence[Networks]) -> Networks:
        """Populations joined along their first dimension."""
        return Networks(*(torch.cat([getattr(n, field.name) for n in networks]) for field in fields(Networks)))

    def put(self, index: Tensor, others: Networks) -> None:
        """Overwrite the networks at ``index`` with ``others``, in place."""
        for field in fields(self):
            getattr(self, field.name)[index] = getattr(others, field.name)

    @property
    def nodes(self) -> Tensor:
        """``(..., M)`` bool, the nodes that are present."""
        return self.links.any(-2)

    def parameters(self) -> Tensor:
        """``(...)``, the number of parameters: links + K (nodes + 1)."""
        return self.links.sum((-2, -1)) + self.outputs.shape[-1] * (self.nodes.sum(-1) + 1)

    def hidden(self, units: Units, features: Tensor) -> Tensor:
        """Node outputs ``(..., N, M)`` for features ``(N, I)``; 0 where the node is absent."""
        return units.activation(features @ self.weights) * self.nodes.unsqueeze(-2)

    def predict(self, units: Units, features: Tensor) -> Tensor:
        """Outputs ``(..., N, K)`` for features ``(N, I)``."""
        return self.outputs[..., :1, :] + self.hidden(units, features) @ self.outputs[..., 1:, :]


def without_constants(networks: Networks, units: Units) -> Networks:
    """The same functions, without nodes that see no input: those are constants, and belong to the intercept.

    A product of no inputs is 1, a sigmoid of its bias alone is ``sigmoid(bias)``; beside an intercept either makes the
    least-squares problem singular.
    """
    inputs = networks.weights.shape[-2] - units.biases
    seeing = networks.links[..., :inputs, :].any(-2)
    constant = units.activation(networks.weights[..., inputs:, :].sum(-2)) * ~seeing
    outputs = networks.outputs.clone()
    outputs[..., 0, :] += (constant.unsqueeze(-1) * outputs[..., 1:, :]).sum(-2)
    outputs[..., 1:, :] *= seeing.unsqueeze(-1)
    kept = seeing.unsqueeze(-2)
    return Networks(networks.weights * kept, networks.links & kept, outputs)


class ProductUnits(nn.Module):
    """A layer of product units, ``B_j(x) = prod_i x_i^w_ij``: an encoder for `polytask.Model` whose inputs are positive.

    Args:
        inputs: the number of inputs ``I``; each must be above 0 (scale to [1, 2]), else the output is NaN.
        nodes: the number of units ``M``, also the attribute ``width``.

    Shape: ``(N, I) -> (N, M)``. Exponents start as normal deviates of standard deviation 0.5.
    """

    def __init__(self, inputs: int, nodes: int) -> None:
        super().__init__()
        self.width = nodes
        self.exponents = nn.Parameter(torch.randn(inputs, nodes) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x.log() @ self.exponents).exp()
