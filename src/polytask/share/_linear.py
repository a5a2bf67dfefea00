"""Linear layers, torch's own and the ``Conv1D`` of `transformers` (GPT-2), whose weight is the other way round."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn


def linear_types() -> tuple[type[nn.Module], ...]:
    """The classes of linear layers. ``Conv1D`` can only be met where `transformers` has been imported."""
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return (nn.Linear, conv1d) if conv1d else (nn.Linear,)


def weight_of(layer: nn.Module) -> Tensor:
    """The layer's weight as a view ``(out, in)``: what is written into it is written into the layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(layer, nn.Linear) else weight.mT


def factory(layer: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device of what is inserted at a layer, and its dtype: the layer's, or float32 where that is half precision."""
    weight = next(layer.parameters())
    return weight.device, torch.promote_types(weight.dtype, torch.float32)


def add_to_weight(layer: nn.Module, delta: Tensor) -> None:
    """Add ``delta (out, in)`` to the layer's weight, rounded once."""
    weight = weight_of(layer)
    weight.copy_((weight.to(delta.dtype) + delta).to(weight.dtype))
