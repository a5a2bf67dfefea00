"""What merging asks of models in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch as safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from polytask.errors import InputError
from polytask.files import replacing


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic on weights of type ``dtype``: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def same_tensors(models: Sequence[Mapping[str, Tensor]], reference: Mapping[str, Tensor]) -> None:
    """Raise `InputError` unless state dicts have the names and shapes of ``reference``."""
    for k, model in enumerate(models, 1):
        if odd := sorted(model.keys() ^ reference.keys()):
            raise InputError(f"model {k}: tensor {odd[0]!r} is not in every model, expected the same names in all")
        for name, tensor in model.items():
            if tensor.shape != reference[name].shape:
                shapes = f"{list(tensor.shape)}, expected {list(reference[name].shape)}"
                raise InputError(f"model {k}: tensor {name!r} has shape {shapes}")


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, which may share memory, and notes to a safetensors file, whole or not at all.

    Raises `InputError` where it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            mode = temporary.stat().st_mode & 0o777
            safetensors.save_file(_apart(tensors), temporary, dict(metadata))
            temporary.chmod(mode)  # safetensors keeps a file to its owner; this one is for whoever may read the folder
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be written ({error})") from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous and no two in the same memory, as a safetensors file needs them."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return apart
