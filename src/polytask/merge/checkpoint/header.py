"""What a safetensors file says of itself: parsed by hand, and believed only after every check.

The format (https://github.com/huggingface/safetensors): 8 bytes, the length of the header as a little-endian integer; the
header, a JSON object from each tensor's name to its ``dtype``, ``shape`` and ``data_offsets``, with strings about the
file under ``__metadata__``; then the tensors' bytes, one after the other, without gaps.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from polytask.errors import InputError, quoted
from polytask.merge.checkpoint._checkpoint import Entry

LIMIT = 100_000_000
"""Bytes of a header or an index, at most: what the safetensors library allows, too."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_LARGEST = 2**63 - 1  # what torch counts elements with


@dataclass(frozen=True)
class Header:
    """The header of one safetensors file.

    Attributes:
        entries: each tensor's dtype and shape.
        spans: the first byte of each tensor and the one after its last, counted from the start of the file.
        metadata: the strings under ``__metadata__``.
        identity: of the file as it was, see `identity`.
    """

    entries: Mapping[str, Entry]
    spans: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]
    identity: tuple[int, ...]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; no byte of its tensors is read.

    Raises `InputError` naming file and tensor when anything in it cannot be so: see `tests/merge/checkpoint`.
    """
    with open_regular(path) as file:
        found = identity(file)
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise InputError(
                f"{path}: {size} bytes, expected a safetensors file, which starts with the length of its header"
            )
        length = int.from_bytes(file.read(8), "little")
        if length > LIMIT:
            raise InputError(f"{path}: header of {length} bytes, expected at most {LIMIT}: not a safetensors file")
        if 8 + length > size:
            raise InputError(f"{path}: header of {length} bytes in a file of {size}: truncated, or not a safetensors file")
        content = parse(file.read(length), f"{path}: header")
    if not isinstance(content, dict):
        raise InputError(f"{path}: header is a {type(content).__name__}, expected a JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: __metadata__ {quoted(metadata)}, expected an object of strings")
    entries, spans = {}, {}
    for name, value in content.items():
        entries[name], spans[name] = _tensor(name, value, f"{path}: tensor {quoted(name)}")
    _check_layout(path, spans, size - 8 - length)
    shifted = {name: (8 + length + begin, 8 + length + end) for name, (begin, end) in spans.items()}
    return Header(entries, shifted, metadata, found)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read; a folder, a pipe, a device or nothing at all is an `InputError`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # looked at before it is opened: opening a pipe waits for a writer
            raise InputError(f"{path}: not a regular file, expected a file with tensors")
        return path.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def identity(file: BinaryIO) -> tuple[int, ...]:
    """What differs once a file has been replaced or written to: device, inode, size and time of change."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def parse(content: bytes, where: str) -> Any:
    """A JSON value from a stranger: UTF-8, no name twice in one object, no NaN, not nested without end."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise InputError(f"{where}: {quoted(name)} is there twice, expected each name once")
            name.encode()  # half a surrogate pair is no text, and could not be written again
            found[name] = value
        return found

    def refuse(constant: str) -> Any:
        raise InputError(f"{where}: {constant} is not JSON")

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{where}: not valid JSON (nested too deeply)") from error
    except UnicodeError as error:
        raise InputError(f"{where}: not UTF-8 text") from error
    except ValueError as error:  # also of an integer with thousands of digits
        raise InputError(f"{where}: not valid JSON ({quoted(str(error))})") from error


def _tensor(name: str, value: Any, where: str) -> tuple[Entry, tuple[int, int]]:
    """One tensor of a header, and its ``data_offsets``, which hold as many bytes as dtype and shape ask for."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: {quoted(value)}, expected an object with dtype, shape and data_offsets")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{where}: dtype {quoted(dtype)}, expected one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > 64 or not all(type(length) is int and length >= 0 for length in shape):
        raise InputError(f"{where}: shape {quoted(shape)}, expected a list of at most 64 integers >= 0")
    entry = Entry(name, DTYPES[dtype], tuple(shape))
    if math.prod(length or 1 for length in shape) * entry.dtype.itemsize > _LARGEST:
        raise InputError(f"{where}: shape {quoted(shape)}, expected at most 2**63 - 1 bytes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        raise InputError(f"{where}: data_offsets {quoted(offsets)}, expected two integers")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise InputError(f"{where}: data_offsets {quoted(offsets)}, expected 0 <= begin <= end")
    if end - begin != entry.nbytes:
        raise InputError(
            f"{where}: data_offsets {quoted(offsets)} hold {end - begin} bytes, "
            f"expected {entry.nbytes} for {dtype} {quoted(shape)}"
        )
    return entry, (begin, end)


def _check_layout(path: Path, spans: Mapping[str, tuple[int, int]], size: int) -> None:
    """The tensors follow one another without overlap or hole and fill the ``size`` bytes after the header."""
    reached, last = 0, ""
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        where = f"{path}: tensor {quoted(name)}: data_offsets [{begin}, {end}]"
        if begin < reached:
            raise InputError(f"{where} overlap those of {quoted(last)}, which end at {reached}")
        if begin > reached:
            raise InputError(f"{where} leave a hole, expected them to begin at {reached}")
        if end > size:
            raise InputError(f"{where}, but the file holds {size} bytes of tensors: truncated, or out of range")
        reached, last = end, name
    if reached < size:
        raise InputError(f"{path}: {size - reached} bytes after the last tensor, expected none")
