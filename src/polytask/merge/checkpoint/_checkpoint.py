"""A checkpoint: the names, shapes and dtypes of its tensors at once, their elements a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from polytask.errors import InputError, quoted


@dataclass(frozen=True)
class Entry:
    """What a header says of a tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements; 1 for a tensor without dimensions."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the elements take."""
        return self.numel * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating-point numbers, of 8 to 64 bits, and so can be averaged."""
        return self.dtype.is_floating_point


class Source(Protocol):
    """Where a checkpoint gets a tensor from: a file, or another checkpoint that it builds on."""

    def read(self, name: str, start: int, stop: int, /) -> Tensor: ...

    def release(self, name: str, /) -> None: ...


class File(Source, Protocol):
    """A file with tensors, whose names are known before any of their elements is read."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


class Checkpoint:
    """Tensors by name over one file, over the shards of a folder, or over a base with an adapter; see `open_checkpoint`.

    A context manager. Leaving it, or `close`, lets go of the memory maps; a tensor that was read keeps the one it lies in.
    Several threads may read at once.

    Attributes:
        path: what was opened.
        entries: each tensor's dtype and shape, in sorted order of the names.
        metadata: the notes in the headers of safetensors files, such as ``{"format": "pt"}``. Where shards differ, the first
            file in sorted order counts.
        files: the files with tensors, in sorted order; with an adapter, its file comes after the base's.
        bytes_read: bytes handed out by `read` so far.
    """

    def __init__(
        self,
        path: Path,
        files: Iterable[Path],
        entries: Mapping[str, Entry],
        metadata: Mapping[str, str],
        sources: Mapping[str, Source],
    ) -> None:
        self.path = path
        self.files = tuple(files)
        self.entries: Mapping[str, Entry] = MappingProxyType({name: entries[name] for name in sorted(entries)})
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata))
        self.bytes_read = 0
        self._sources: dict[str, Source] | None = dict(sources)
        self._lock = Lock()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` (default: the end) of the flattened tensor, ``(stop - start,)``, as stored.

        Of a safetensors or zipped PyTorch file this is a view of a memory map, without a copy and without memory of its
        own: it must not be written to, which ends the process or changes what is read next. A piece that is not aligned,
        that lies in a view with other strides or that has to be computed is a copy of just that piece.

        Raises `InputError` for an unknown name, for a range outside the tensor, after `close`, and when a file has been
        changed since it was opened.
        """
        source, entry = self._source(name), self.entries[name]
        stop = entry.numel if stop is None else stop
        if not 0 <= start <= stop <= entry.numel:
            raise InputError(f"{self.path}: {name}: elements {start} to {stop}, expected a range within 0 to {entry.numel}")
        piece = source.read(name, start, stop)
        with self._lock:
            self.bytes_read += (stop - start) * entry.dtype.itemsize
        return piece

    def release(self, name: str) -> None:
        """Tell the system that the pages of this tensor are not needed any more. A hint: it can be read again all the same.

        Pages of safetensors files leave the process; those of PyTorch's own files are left for the system to reclaim.
        """
        self._source(name).release(name)

    def close(self) -> None:
        """Let go of the memory maps; reading is an error from now on."""
        self._sources = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.entries)} tensors in {len(self.files)} files)"

    def _source(self, name: str) -> Source:
        if self._sources is None:
            raise InputError(f"{self.path}: closed, expected an open checkpoint")
        if name not in self._sources:
            raise InputError(f"{self.path}: no tensor {quoted(name)}, {nearest(name, self.entries)}")
        return self._sources[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown tensor. Unlike `polytask.errors.suggest` it never lists thousands of names."""
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {quoted(near[0])}?" if near else f"expected one of its {len(known)} tensors"
