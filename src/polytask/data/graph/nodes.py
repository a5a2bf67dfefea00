"""Random splits of nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.data.stream import generator
from polytask.errors import InputError


def split_nodes(nodes: int | Tensor, validation: float = 0.1, test: float = 0.8, seed: int = 0) -> dict[str, Tensor]:
    """``{"train": ..., "validation": ..., "test": ...}``: a random split, each in ascending order.

    Args:
        nodes: their number, or ``(M,)`` which of them to split, as those that have a label.
        validation, test: shares, rounded down; the rest is for training.
        seed: of the split.

    Raises:
        InputError: a set that would be empty.
    """
    chosen = torch.arange(nodes) if isinstance(nodes, int) else nodes
    sizes = [int(share * len(chosen)) for share in (validation, test)]
    if min(sizes) < 1 or sum(sizes) >= len(chosen):
        raise InputError(
            f"{len(chosen)} nodes split {validation:g} / {test:g} make {sizes[0]} for validation, {sizes[1]} for test, "
            f"{len(chosen) - sum(sizes)} for training, expected at least 1 each"
        )
    order = torch.randperm(len(chosen), generator=generator(seed, 0))
    parts = chosen[order].split([*sizes, len(chosen) - sum(sizes)])  # type: ignore[no-untyped-call]
    return {name: part.sort().values for name, part in zip(("validation", "test", "train"), parts, strict=True)}
