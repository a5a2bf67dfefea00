"""Vectors on disk, found by inner product: small, memory-mapped, added to at any time, and searched by clusters."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polytask.errors import InputError
from polytask.files import read_json, replacing_folder, write_json
from polytask.route.tools.clusters import nearest, spherical_means
from polytask.route.tools.selection import Selection, best

Floats = NDArray[np.float32]
CHUNK = 4096


@dataclass(frozen=True)
class _Segment:
    """A part of an index that is never changed: rows that lie cluster by cluster, or in no order."""

    name: str
    replaces: tuple[str, ...]
    ids: NDArray[np.int64]
    codes: NDArray[Any]
    scales: Floats
    centroids: Floats
    starts: NDArray[np.int64]


class VectorIndex:
    """Vectors of length 1 by id, in a folder; an id may have several, of which the best counts.

    What is added is a new segment, in the folder as a whole or not at all; processes may add at the same time.
    `build` makes one segment of all, in which rows lie by the cluster that they belong to: a search then scores the
    ``probe`` nearest clusters alone (an inverted file: Sivic and Zisserman, 2003), and all rows of later segments. The plain
    path, ``probe=None``, scores everything.

    Args:
        folder: where it is, or is to be; nothing else should be in there.
        width: of the vectors.
        dtype: how they are kept: ``"int8"``, with a scale for each row, or ``"float16"``.
        model: a name for what made the vectors; an index of another model is refused.
    """

    def __init__(self, folder: Path | str, width: int, dtype: Literal["int8", "float16"] = "int8", model: str = "") -> None:
        self.folder, self.width, self.dtype = Path(folder), width, dtype
        if dtype not in ("int8", "float16"):
            raise InputError(f"dtype {dtype!r}, expected 'int8' or 'float16'")
        self.about = {"width": width, "dtype": dtype, "model": model}
        if not (self.folder / "index.json").exists():
            write_json(self.folder / "index.json", self.about)
        if (found := read_json(self.folder / "index.json")) != self.about:
            raise InputError(f"{self.folder}: an index of {found}, expected one of {self.about}")
        self._segments: tuple[_Segment, ...] = ()
        self._seen: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(segment.ids) for segment in self.segments())

    def ids(self) -> set[int]:
        """All ids that it has."""
        return {one for segment in self.segments() for one in segment.ids.tolist()}

    def add(self, ids: Sequence[int] | NDArray[np.int64], vectors: Floats) -> None:
        """Add vectors of some ids, ``(N, width)``; they are brought to length 1. Ids that are there keep what they have."""
        if vectors.shape != (len(ids), self.width):
            raise InputError(f"{self.folder}: vectors {vectors.shape} of {len(ids)} ids, expected {(len(ids), self.width)}")
        if not np.isfinite(vectors).all():
            raise InputError(f"{self.folder}: a vector is not finite")
        if len(ids):
            none = np.zeros((0, self.width), np.float32)
            with self._writing(len(ids), (), none, np.array([0, len(ids)])) as (numbers, codes, scales):
                numbers[:] = ids
                for start in range(0, len(ids), CHUNK):
                    piece = slice(start, start + CHUNK)
                    codes[piece], scales[piece] = self._packed(vectors[piece])

    def build(self, clusters: int | None = None, *, alive: set[int] | None = None, seed: int = 0) -> None:
        """Make one segment of all, by clusters; equal arguments give the same index.

        Args:
            clusters: how many, by default the square root of the number of vectors, at most 1024.
            alive: the ids to keep; by default all.
            seed: of the sample of vectors of which the clusters are found.
        """
        segments = self.segments()
        place = np.concatenate([np.full(len(s.ids), n) for n, s in enumerate(segments)]) if segments else np.zeros(0, int)
        row = np.concatenate([np.arange(len(s.ids)) for s in segments]) if segments else np.zeros(0, int)
        ids = np.concatenate([s.ids for s in segments]) if segments else np.zeros(0, np.int64)
        kept = np.arange(len(ids)) if alive is None else np.flatnonzero(np.isin(ids, np.fromiter(alive, np.int64)))
        kept = kept[np.argsort(ids[kept], kind="stable")]  # the names of segments are random, and their order with them
        place, row, ids = place[kept], row[kept], ids[kept]
        count = clusters or int(min(1024, max(1, round(len(ids) ** 0.5))))
        sample = np.sort(np.random.default_rng(seed).permutation(len(ids))[: 40 * count])
        centroids = spherical_means(self._rows(segments, place[sample], row[sample]), count, seed=seed)
        own = np.empty(len(ids), np.int64)
        for start in range(0, len(ids), CHUNK):
            piece = slice(start, start + CHUNK)
            own[piece] = nearest(self._rows(segments, place[piece], row[piece]), centroids)
        order = np.argsort(own, kind="stable")
        starts = np.searchsorted(own[order], np.arange(len(centroids) + 1))
        names = tuple(segment.name for segment in segments)
        with self._writing(len(ids), names, centroids, starts) as (numbers, codes, scales):
            numbers[:] = ids[order]
            for start in range(0, len(order), CHUNK):
                some = order[start : start + CHUNK]
                for n, segment in enumerate(segments):
                    here = np.flatnonzero(place[some] == n)
                    codes[start + here] = segment.codes[row[some[here]]]
                    scales[start + here] = segment.scales[row[some[here]]]
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def search(self, query: Floats, k: int, *, among: NDArray[np.int64] | None = None, probe: int | None = 32) -> Selection:
        """The ``k`` ids of highest inner product with a vector.

        Args:
            query: ``(width,)``, brought to length 1.
            k: how many.
            among: only these ids, sorted; all of their rows are scored.
            probe: how many clusters are looked at; ``None`` scores every row.
        """
        query = np.asarray(query, np.float32) / max(float(np.linalg.norm(query)), 1e-12)
        ids, scores = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for segment in self.segments():
            if among is not None:
                rows = np.flatnonzero(np.isin(segment.ids, among))
                ids.append(segment.ids[rows])
                scores.append(self._products(segment.codes[rows], segment.scales[rows], query))
                continue
            for low, high in _spans(segment, query, probe):
                ids.append(segment.ids[low:high])
                scores.append(self._products(segment.codes[low:high], segment.scales[low:high], query))
        found, values = np.concatenate(ids), np.concatenate(scores)
        return Selection(best(found, values, k), len(found))

    def rows(self) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """All vectors with their ids, some thousand at a time."""
        for segment in self.segments():
            for start in range(0, len(segment.ids), CHUNK):
                piece = slice(start, start + CHUNK)
                yield segment.ids[piece], segment.codes[piece].astype(np.float32) * segment.scales[piece, None]

    def segments(self) -> tuple[_Segment, ...]:
        """What is in the folder now, without what a later segment replaces."""
        names = tuple(sorted(path.name for path in self.folder.glob("segment-*")))
        if names != self._seen:
            known = {segment.name: segment for segment in self._segments}
            found = [known.get(name) or self._open(name) for name in names]
            replaced = {name for segment in found for name in segment.replaces}
            self._segments = tuple(segment for segment in found if segment.name not in replaced)
            self._seen = names
        return self._segments

    def _open(self, name: str) -> _Segment:
        folder = self.folder / name
        about = read_json(folder / "segment.json")
        try:
            ids, scales, centroids, starts = (np.load(folder / f"{n}.npy") for n in ("ids", "scales", "centroids", "starts"))
            codes = np.load(folder / "codes.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: cannot be read as a part of an index ({error})") from error
        if codes.shape != (len(ids), self.width) or len(scales) != len(ids) or starts[-1] != len(ids):
            raise InputError(f"{folder}: codes {codes.shape} of {len(ids)} ids, expected (N, {self.width})")
        return _Segment(name, tuple(about["replaces"]), ids, codes, scales, centroids, starts)

    def _writing(self, count: int, replaces: tuple[str, ...], centroids: Floats, starts: NDArray[np.int64]) -> Any:
        return _Writing(self, count, replaces, centroids, starts)

    def _packed(self, vectors: Floats) -> tuple[NDArray[Any], Floats]:
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        if self.dtype == "float16":
            return unit.astype(np.float16), np.ones(len(unit), np.float32)
        scales = np.maximum(np.abs(unit).max(1), 1e-12).astype(np.float32) / 127
        return np.rint(unit / scales[:, None]).astype(np.int8), scales

    def _rows(self, segments: Sequence[_Segment], place: NDArray[Any], row: NDArray[Any]) -> Floats:
        found = np.empty((len(row), self.width), np.float32)
        for n, segment in enumerate(segments):
            here = np.flatnonzero(place == n)
            found[here] = segment.codes[row[here]] * segment.scales[row[here], None]
        return found

    def _products(self, codes: NDArray[Any], scales: Floats, query: Floats) -> Floats:
        """Row by row the inner product, in float32 and a piece at a time."""
        found = np.empty(len(codes), np.float32)
        buffer = np.empty((min(CHUNK, len(codes)), self.width), np.float32)
        for start in range(0, len(codes), CHUNK):
            piece = codes[start : start + CHUNK]
            part = buffer[: len(piece)]
            np.copyto(part, piece)
            np.dot(part, query, out=found[start : start + len(piece)])
        return found * scales


def _spans(segment: _Segment, query: Floats, probe: int | None) -> Iterator[tuple[int, int]]:
    """The rows to look at: those of the nearest clusters, or all."""
    if probe is None or probe >= len(segment.centroids):
        yield 0, len(segment.ids)
        return
    for cluster in np.argsort(-(segment.centroids @ query))[:probe].tolist():
        yield int(segment.starts[cluster]), int(segment.starts[cluster + 1])


class _Writing:
    """A new segment: arrays to fill, which are in the index when the block ends well."""

    def __init__(
        self, index: VectorIndex, count: int, replaces: tuple[str, ...], centroids: Floats, starts: NDArray[np.int64]
    ) -> None:
        self.index, self.count, self.replaces, self.centroids, self.starts = index, count, replaces, centroids, starts

    def __enter__(self) -> tuple[NDArray[np.int64], NDArray[Any], Floats]:
        self._folder = replacing_folder(self.index.folder / f"segment-{secrets.token_hex(8)}")
        folder = self._folder.__enter__()
        shape = (self.count, self.index.width)
        np.save(folder / "centroids.npy", self.centroids)
        np.save(folder / "starts.npy", self.starts.astype(np.int64))
        write_json(folder / "segment.json", {"replaces": list(self.replaces)})
        made = [
            np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=size)
            for name, dtype, size in (("ids", np.int64, shape[:1]), ("codes", self.index.dtype, shape),
                                      ("scales", np.float32, shape[:1]))
        ]  # fmt: skip
        self._made = made
        return made[0], made[1], made[2]

    def __exit__(self, *raised: Any) -> None:
        for array in self._made:
            array.flush()
        self._folder.__exit__(*raised)
