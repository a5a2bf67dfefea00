"""What was measured of a model, on disk: Fisher values or Gram matrices, which a recipe names beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from polytask.errors import InputError
from polytask.merge._models import save_tensors
from polytask.merge.engine.source import InMemory
from polytask.merge.rules.regmean import Gram, as_source


def save_measured(path: Path | str, measured: Mapping[str, Tensor] | Mapping[str, Gram]) -> None:
    """Write what was measured of a model to a safetensors file, whole or not at all; `open_checkpoint` opens it.

    Args:
        path: of the file, which ends in ``.safetensors``.
        measured: what `fisher_diagonal` or `gram_matrices` gave. Of a `Gram` the matrix is kept, and in the header whether
            the weight is ``(in, out)``; not how many inputs it has seen, which merging does not ask for.

    Raises:
        InputError: the path has another ending, or cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise InputError(f"{path}: expected a name that ends in .safetensors")
    grams = {name: each for name, each in measured.items() if isinstance(each, Gram)}
    tensors = {name: each for name, each in measured.items() if isinstance(each, Tensor)}
    source = as_source(grams) if grams else InMemory(tensors)
    held = {name: tensor.detach().cpu() for name, tensor in source.tensors.items()}
    save_tensors(path, held, {"format": "pt", **source.metadata})
