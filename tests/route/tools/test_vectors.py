"""The index of vectors: exact where it scans, close where it looks at clusters, whole at any time."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from polytask.errors import InputError
from polytask.route.tools import VectorIndex
from polytask.route.tools.clusters import nearest, spherical_means


def drawn(count: int, width: int = 24, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, width))
    return (centres[rng.integers(12, size=count)] + 0.5 * rng.standard_normal((count, width))).astype(np.float32)


def top(ids: np.ndarray, vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return ids[np.argsort(-(unit @ query), kind="stable")[:k]].tolist()


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.01), ("float16", 0.001)])
def test_a_scan_is_the_inner_product(tmp_path: Path, dtype: str, error: float) -> None:
    ids, vectors, query = np.arange(500, 900), drawn(400), drawn(1, seed=9)[0]
    index = VectorIndex(tmp_path, 24, dtype)  # type: ignore[arg-type]
    index.add(ids, vectors)
    found = index.search(query, 400, probe=None)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    want = dict(zip(ids.tolist(), (unit @ (query / np.linalg.norm(query))).tolist(), strict=True))
    assert found.scored == 400 and all(hit.score == pytest.approx(want[hit.id], abs=error) for hit in found.hits)
    again = VectorIndex(tmp_path, 24, dtype)  # type: ignore[arg-type]
    assert again.search(query, 9, probe=None) == index.search(query, 9, probe=None) and len(again) == 400


def test_building_changes_where_rows_lie_and_nothing_else(tmp_path: Path) -> None:
    index = VectorIndex(tmp_path, 24)
    for part in range(4):
        index.add(np.arange(250) + 250 * part, drawn(250, seed=part))
    queries = drawn(270, seed=3)[250:]  # around the centres of one part
    exact = [index.search(query, 10, probe=None) for query in queries]
    index.build(clusters=16)
    assert len(list(tmp_path.glob("segment-*"))) == 1 and len(index.segments()[0].centroids) == 16
    for probe in (None, 16):
        for query, want in zip(queries, exact, strict=True):
            found = index.search(query, 10, probe=probe)
            assert found.ids == want.ids and found.scored == want.scored
            assert [hit.score for hit in found.hits] == pytest.approx([hit.score for hit in want.hits], abs=1e-6)
    few = [index.search(query, 10, probe=4) for query in queries]
    assert all(one.scored < 700 for one in few)
    recall = np.mean([len(set(a.ids) & set(b.ids)) / 10 for a, b in zip(few, exact, strict=True)])
    assert recall > 0.9
    index.add([5000], queries[:1])
    assert index.search(queries[0], 1, probe=1).ids == [5000], "what is added later is always looked at"
    among = np.array([3, 700, 5000])
    assert set(index.search(queries[0], 9, among=among).ids) == set(among.tolist())
    index.build(alive=set(range(100)))
    assert index.ids() == set(range(100))
    index.build(alive=set())
    assert len(index) == 0 and index.search(queries[0], 3).ids == []
    VectorIndex(tmp_path / "none", 24).build()


def add(folder: Path, first: int) -> None:
    index = VectorIndex(folder, 24)
    for part in range(5):
        index.add(np.arange(20) + first + 20 * part, drawn(20, seed=first + part))
    if first:
        index.build()


@pytest.mark.soak
def test_two_processes_add_and_build_at_the_same_time(tmp_path: Path) -> None:
    VectorIndex(tmp_path, 24)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=add, args=(tmp_path, first)) for first in (0, 1000)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert VectorIndex(tmp_path, 24).ids() == {*range(100), *range(1000, 1100)}


def test_what_is_not_finished_is_not_there(tmp_path: Path) -> None:
    index = VectorIndex(tmp_path, 24)
    index.add([1], drawn(1))
    (tmp_path / ".segment-ff.abc.part").mkdir()
    (tmp_path / ".segment-ff.abc.part" / "ids.npy").write_bytes(b"half")
    assert VectorIndex(tmp_path, 24).ids() == {1}
    segment = next(tmp_path.glob("segment-*"))
    (segment / "codes.npy").write_bytes((segment / "codes.npy").read_bytes()[:90])
    with pytest.raises(InputError, match="cannot be read as a part of an index"):
        VectorIndex(tmp_path, 24).ids()


def test_other_vectors_are_refused(tmp_path: Path) -> None:
    index = VectorIndex(tmp_path, 24, model="a")
    for settings in ({"width": 25}, {"dtype": "float16"}, {"model": "b"}):
        with pytest.raises(InputError, match="an index of"):
            VectorIndex(tmp_path, **{"width": 24, "model": "a", **settings})
    with pytest.raises(InputError, match="vectors"):
        index.add([1, 2], drawn(1))
    with pytest.raises(InputError, match="not finite"):
        index.add([1], np.full((1, 24), np.nan, np.float32))
    with pytest.raises(InputError, match="dtype 'int4'"):
        VectorIndex(tmp_path / "b", 24, "int4")  # type: ignore[arg-type]
    index.add([], np.zeros((0, 24), np.float32))
    assert len(index) == 0
    index.add([7], np.zeros((1, 24), np.float32))
    assert index.search(drawn(1)[0], 1).hits[0].score == 0


def test_clusters_gain_with_every_step() -> None:
    vectors = drawn(400)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gains = []
    for steps in (1, 3, 8):
        centroids = spherical_means(vectors, 12, steps=steps)
        np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
        gains.append(float((vectors @ centroids.T).max(1).sum()))
    assert gains[0] < gains[1] <= gains[2] + 1e-4
    assert (nearest(vectors, centroids, piece=7) == (vectors @ centroids.T).argmax(1)).all()
    assert len(spherical_means(vectors[:3], 12)) == 3 and len(spherical_means(vectors[:1], 1)) == 1
    same = spherical_means(np.repeat(vectors[:1], 9, axis=0), 4)
    assert np.isfinite(same).all()
