"""The files of ``torch.save``, read without running anything that is in them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.errors import InputError, quoted
from polytask.merge.checkpoint._checkpoint import Entry
from polytask.merge.checkpoint.header import LIMIT, open_regular

NESTED = ("state_dict", "model")
"""Under these names training scripts keep the state dict beside other things."""


class TorchFile:
    """One ``.bin``, ``.pt`` or ``.pth`` file; see `polytask.merge.checkpoint._checkpoint.File`.

    It holds a state dict, or one under ``state_dict`` or ``model`` beside whatever else a training script saved. It is read
    with ``weights_only=True``: a pickle that asks for anything else than tensors and plain containers is refused, and not
    run. Files of torch 1.6 and later, which are zip archives, are mapped into memory, so that opening one reads the pickle
    alone. Older files cannot be mapped: **they are loaded whole**, and hold as much memory as they are large until closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as file:
            zipped = file.read(4) == b"PK\x03\x04"
        sizes = _storage_sizes(path) if zipped else None
        state = _state_dict(path, _load(path, zipped))
        self._tensors = {name: _checked(path, name, value, sizes) for name, value in state.items()}
        self.entries: Mapping[str, Entry] = {
            name: Entry(name, value.dtype, tuple(value.shape)) for name, value in self._tensors.items()
        }
        self.metadata: Mapping[str, str] = {}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return _piece(self._tensors[name], start, stop)

    def release(self, name: str) -> None:
        """Nothing: what an old file holds is no page of a file, and giving that back to the system would erase it."""


def _storage_sizes(path: Path) -> set[int]:
    """The sizes of the members of the archive, each of which has to lie in the file as it is, since it is to be mapped."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: truncated or damaged, expected a file of torch.save ({error})") from error
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise InputError(f"{path}: a TorchScript archive, expected a state dict")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise InputError(f"{path}: {quoted(member.filename)} is compressed or encrypted, expected a file of torch.save")
        if member.filename.endswith("/data.pkl") and member.file_size > LIMIT:
            raise InputError(f"{path}: pickle of {member.file_size} bytes, expected at most {LIMIT}")
    return {member.file_size for member in members}


def _load(path: Path, zipped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # the bytes of a stranger can fail in any way that there is
        # What torch says first is how to run the file all the same; what it refused is in the error before.
        reason = str(error.__context__ or error)
        asked = re.search(r"GLOBAL (\S+)", reason)
        if asked:
            raise InputError(
                f"{path}: its pickle asks for {quoted(asked[1])}, expected nothing but tensors; nothing of it was run"
            ) from error
        first = next(iter(reason.splitlines()), type(error).__name__)
        raise InputError(f"{path}: cannot be read as a file of torch.save ({quoted(first)})") from error


def _state_dict(path: Path, loaded: Any) -> Mapping[str, Any]:
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, expected a state dict")
    nested = [name for name in NESTED if isinstance(loaded.get(name), dict)]
    if len(nested) > 1:
        raise InputError(f"{path}: holds both {' and '.join(map(repr, nested))}, expected one state dict")
    state: dict[Any, Any] = loaded[nested[0]] if nested else loaded
    for name in state:
        if not isinstance(name, str):
            raise InputError(f"{path}: key {quoted(name)} in the state dict, expected names of tensors")
    return state


def _checked(path: Path, name: str, value: Any, sizes: set[int] | None) -> Tensor:
    where = f"{path}: tensor {quoted(name)}"
    if not isinstance(value, Tensor):
        raise InputError(f"{where}: a {type(value).__name__}, expected a tensor")
    value = value.detach()
    if type(value) is not Tensor or value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        kind = f"{type(value).__name__} {value.layout} {value.dtype} on {value.device}"
        raise InputError(f"{where}: {kind}, expected a plain tensor")
    if sizes is not None and value.untyped_storage().nbytes() not in sizes | {0}:
        raise InputError(f"{where}: storage of {value.untyped_storage().nbytes()} bytes, which the archive does not hold")
    return value


def _piece(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Elements of the flattened tensor: a view where the strides allow, else a copy of these rows and no more."""
    if start == stop:
        return tensor.new_empty(0)
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    width = tensor[0].numel()
    first, last = start // width, (stop - 1) // width
    if first == last:
        return _piece(tensor[first], start - first * width, stop - first * width)
    head = _piece(tensor[first], start - first * width, width)
    tail = _piece(tensor[last], 0, stop - last * width)
    return torch.cat([head, tensor[first + 1 : last].flatten(), tail])
