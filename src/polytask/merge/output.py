"""A merged checkpoint on disk: shards laid out before they are filled, and nothing that looks finished until it is."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.files import read_json, write_json
from polytask.merge.checkpoint.header import DTYPES

SHARD = 5 * 10**9
"""Bytes of a shard, at most, unless one tensor is larger."""

JOURNAL = "merge.part.json"

NOTED_EVERY = 5.0
"""Seconds between two notes of what is done."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""What a header calls each precision."""


class Output:
    """A folder of safetensors that is filled beside its place, and put there by `finish`.

    A run that is killed leaves a hidden folder beside; the next run with the same ``digest`` goes on with the tensors that
    are not `done`, another one starts anew.

    Args:
        path: the folder to make; it may be there if it is empty.
        tensors: precision and shape of each, by name.
        digest: of all that the result depends on.
        shard: bytes of a shard, at most.

    Raises:
        InputError: there is something in ``path``, or not enough room on the disk.
    """

    def __init__(
        self, path: Path | str, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], digest: str, shard: int = SHARD
    ) -> None:
        self.path = Path(path)
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise InputError(f"{self.path}: exists already, expected a new or an empty folder")
        self.folder = self.path.with_name(f".{self.path.name}.merging")
        self.digest = digest
        self.shards = _shards(tensors, shard)
        self.tensors = dict(tensors)
        self.done: list[str] = []
        self._files: dict[str, int] = {}
        self._places: dict[str, tuple[str, int, int]] = {}
        self._noted = time.monotonic()
        self._lock = Lock()
        self._start()

    def _start(self) -> None:
        headers = {file: _header(names, self.tensors) for file, names in self.shards.items()}
        for file, (head, offsets) in headers.items():
            for name, (start, stop) in offsets.items():
                self._places[name] = file, len(head) + start, stop - start
        sizes = {
            file: len(head) + max((stop for _, stop in offsets.values()), default=0)
            for file, (head, offsets) in headers.items()
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._resumes():
                shutil.rmtree(self.folder, ignore_errors=True)
                need = sum(sizes.values())
                free = shutil.disk_usage(self.path.parent).free
                if need > free:
                    raise InputError(f"{self.path}: needs {need:,} bytes, and the disk has {free:,} left")
                self.folder.mkdir()
                for file, (head, _) in headers.items():
                    _allocate(self.folder / file, head, sizes[file])
                self._note()
            self._files = {file: os.open(self.folder / file, os.O_RDWR) for file in self.shards}
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def _resumes(self) -> bool:
        if not (self.folder / JOURNAL).exists():
            return False
        try:
            journal = read_json(self.folder / JOURNAL)
        except InputError:
            return False
        if journal.get("digest") != self.digest or any(not (self.folder / file).exists() for file in self.shards):
            return False
        self.done = [name for name in journal["done"] if name in self.tensors]
        return True

    def _note(self) -> None:
        write_json(self.folder / JOURNAL, {"digest": self.digest, "done": self.done})
        self._noted = time.monotonic()

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Put ``values``, ``(n,)``, in the tensor's precision, at the element ``start``."""
        file, offset, _ = self._places[name]
        dtype = self.tensors[name][0]
        raw = values.to(dtype).contiguous().view(torch.uint8).numpy().data
        try:
            os.pwrite(self._files[file], raw, offset + start * dtype.itemsize)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def complete(self, name: str) -> None:
        """Note that a tensor is whole: a run that goes on will not make it again. Several threads may do so at once."""
        with self._lock:
            self.done.append(name)
            if time.monotonic() - self._noted > NOTED_EVERY:
                for descriptor in self._files.values():
                    os.fsync(descriptor)
                self._note()

    def finish(self, extra: Mapping[str, str | Path]) -> None:
        """Add other files, by name their text or the file to copy, and put the folder in its place."""
        self.close()
        try:
            (self.folder / JOURNAL).unlink(missing_ok=True)
            if len(self.shards) > 1:
                total = sum(size for _, _, size in self._places.values())
                weights = {name: file for name, (file, _, _) in sorted(self._places.items())}
                write_json(
                    self.folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weights}
                )
            for name, content in extra.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, self.folder / name)
                else:
                    (self.folder / name).write_text(content, encoding="utf-8")
            if self.path.exists():
                self.path.rmdir()
            os.replace(self.folder, self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def close(self) -> None:
        for descriptor in self._files.values():
            os.fsync(descriptor)
            os.close(descriptor)
        self._files = {}


def _shards(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], limit: int) -> dict[str, list[str]]:
    """The files and the names of their tensors, in order."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, (dtype, shape) in tensors.items():
        own = torch.Size(shape).numel() * dtype.itemsize
        if groups[-1] and size + own > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += own
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": names for i, names in enumerate(groups, 1)}


def _header(
    names: list[str], tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The head of a safetensors file, and where in its data each tensor lies."""
    # Wide numbers first, so that each tensor begins where its numbers may.
    offsets: dict[str, tuple[int, int]] = {}
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in sorted(names, key=lambda name: (-tensors[name][0].itemsize, name)):
        dtype, shape = tensors[name]
        stop = place + torch.Size(shape).numel() * dtype.itemsize
        table[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [place, stop]}
        offsets[name] = place, stop
        place = stop
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets


def _allocate(path: Path, head: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
