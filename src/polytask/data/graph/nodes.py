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
    return split_in_order(chosen, validation, test, generator(seed, 0), f"{len(chosen)} nodes")


def split_in_order(rows: Tensor, validation: float, test: float, generator: torch.Generator, what: str) -> dict[str, Tensor]:
    """As `split_rows`, by name and each in ascending order."""
    parts = split_rows(rows, validation, test, generator, what)
    return {name: part.sort().values for name, part in zip(("validation", "test", "train"), parts, strict=True)}


def split_rows(
    rows: Tensor, validation: float, test: float, generator: torch.Generator, what: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows for validation, for testing and for training, in random order: shares rounded down, and the rest.

    Raises `InputError` where one of them would be empty; ``what`` says of what.
    """
    held, tested = (int(share * len(rows)) for share in (validation, test))
    left = len(rows) - held - tested
    if min(held, tested, left) < 1:
        raise InputError(
            f"{what} split {validation:g} / {test:g} make {held} for validation, {tested} for test, {left} for training, "
            "expected at least 1 each"
        )
    mixed = rows[torch.randperm(len(rows), generator=generator)]
    return mixed[:held], mixed[held : held + tested], mixed[held + tested :]
