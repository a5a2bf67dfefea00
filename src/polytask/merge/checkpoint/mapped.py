"""A safetensors file as memory maps: a tensor is a view of the file, and costs no memory of its own."""

from __future__ import annotations

import mmap
import warnings
from collections import OrderedDict
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.checkpoint.header import Header, identity, open_regular, read_header


class Maps:
    """The memory maps of one checkpoint, made as they are needed.

    Only the last few are kept, since each holds a file open and a system allows few hundred open files: ten models of two
    hundred shards are too many. A map goes when neither this nor any tensor refers to it; it is never unmapped by
    force, which would pull the memory from under the tensors.
    """

    def __init__(self, kept: int = 16) -> None:
        self.kept = kept
        self._maps: OrderedDict[Path, tuple[mmap.mmap, Tensor]] = OrderedDict()
        self._lock = Lock()

    def bytes_of(self, path: Path, header: Header) -> Tensor:
        """The bytes of a file, ``(size,)``, uint8; `InputError` when it is not the one that ``header`` was read from."""
        with self._lock:
            if path not in self._maps:
                self._maps[path] = _map(path, header)
                if len(self._maps) > self.kept:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(path)
            return self._maps[path][1]

    def drop(self, path: Path, begin: int, end: int) -> None:
        """Give back the pages of these bytes; they are read from the file again if they are asked for again."""
        with self._lock:
            mapped = self._maps.get(path)
        if mapped is not None and end > begin and hasattr(mmap, "MADV_DONTNEED"):
            page = begin // mmap.PAGESIZE * mmap.PAGESIZE
            mapped[0].madvise(mmap.MADV_DONTNEED, page, end - page)


class SafetensorsFile:
    """One safetensors file; see `polytask.merge.checkpoint._checkpoint.File`."""

    def __init__(self, path: Path, maps: Maps) -> None:
        self.path = path
        self._header = read_header(path)
        self.entries = self._header.entries
        self.metadata = self._header.metadata
        self._maps = maps

    def read(self, name: str, start: int, stop: int) -> Tensor:
        dtype = self.entries[name].dtype
        begin = self._header.spans[name][0] + start * dtype.itemsize
        piece = self._maps.bytes_of(self.path, self._header)[begin : begin + (stop - start) * dtype.itemsize]
        # Nothing in the format makes the data start at a multiple of the element size.
        aligned = piece if begin % dtype.itemsize == 0 else piece.clone()
        return aligned.view(dtype)

    def release(self, name: str) -> None:
        self._maps.drop(self.path, *self._header.spans[name])


def _map(path: Path, header: Header) -> tuple[mmap.mmap, Tensor]:
    with open_regular(path) as file:
        if identity(file) != header.identity:
            raise InputError(f"{path}: has changed since its header was read, expected a file that stays as it is")
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{path}: cannot be mapped into memory ({error.strerror})") from error
    # Read-only on purpose: a private writable map counts against the memory of the machine before it is written to.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return mapped, torch.frombuffer(mapped, dtype=torch.uint8)
