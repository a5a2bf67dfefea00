"""Overlaid digits: nothing of one split is in another, and files that cannot be read are named."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

import polytask as pt
from polytask.data import Examples, multi_images, multidigits, read_idx
from polytask.data.digits import TASKS, split_by_class
from polytask.errors import InputError

DATA = multidigits(TASKS, size=900)
SPLITS = {"train": DATA.train, "validation": DATA.validation, "test": DATA.test}


def image(data: Examples) -> Tensor:
    assert isinstance(data.inputs, Tensor)
    return data.inputs


def corners(data: Examples) -> tuple[set[bytes], set[bytes]]:
    """The 8x3 strips of each image that only the left, and only the right, digit can have inked."""
    pixels = image(data)[:, 0]
    return {x.numpy().tobytes() for x in pixels[:, :8, :3]}, {x.numpy().tobytes() for x in pixels[:, -8:, -3:]}


def test_no_digit_of_one_split_is_in_another() -> None:
    """Found without the code under test: strips that only one of the two digits can have inked tell which digit it is."""
    pixels = (load_digits().data.reshape(-1, 8, 8) / 16).astype(np.float32)
    owners_left: dict[bytes, set[int]] = {}
    owners_right: dict[bytes, set[int]] = {}
    for i, digit in enumerate(pixels):
        owners_left.setdefault(digit[:, :3].tobytes(), set()).add(i)
        owners_right.setdefault(digit[:, -3:].tobytes(), set()).add(i)
    found: dict[str, set[int]] = {}
    for name, data in SPLITS.items():
        left, right = corners(data)
        assert left <= set(owners_left) and right <= set(owners_right)
        # Strips that one digit alone has give that digit away.
        found[name] = {i for s in left for i in owners_left[s] if len(owners_left[s]) == 1}
        found[name] |= {i for s in right for i in owners_right[s] if len(owners_right[s]) == 1}
    assert all(len(digits) > 200 for digits in found.values())
    assert not found["train"] & found["validation"]
    assert not found["train"] & found["test"]
    assert not found["validation"] & found["test"]


def test_images_and_labels_are_those_of_the_source() -> None:
    source = load_digits()
    pixels = torch.from_numpy((source.data.reshape(-1, 8, 8) / 16).astype(np.float32))
    strips = {"left": pixels[:, :, :3], "right": pixels[:, :, -3:]}
    data = DATA.train
    shown = {"left": image(data)[:, 0, :8, :3], "right": image(data)[:, 0, -8:, -3:]}
    for side in ("left", "right"):
        for i in range(60):
            same = (strips[side] == shown[side][i]).all(2).all(1)
            assert int(data.targets[side][i]) in source.target[same.numpy()]
    left, right = data.targets["left"], data.targets["right"]
    assert torch.equal(data.targets["parity"], (left % 2 != right % 2).float())
    assert torch.equal(data.targets["larger"], (left > right).float())
    torch.testing.assert_close(data.targets["ink"], image(data).double().mean((1, 2, 3)).float() * 100)
    assert image(data).shape == (900, 1, 11, 11) and float(image(data).min()) >= 0 and float(image(data).max()) <= 1
    assert not image(data)[:, 0, :3, 8:].any() and not image(data)[:, 0, 8:, :3].any()


def test_sizes_tasks_and_seeds() -> None:
    assert [len(split) for split in SPLITS.values()] == [900, 900, 1800]
    again, other = multidigits(TASKS, size=900), multidigits(TASKS, size=900, seed=1)
    assert torch.equal(image(again.train), image(DATA.train)) and torch.equal(
        again.test.targets["ink"], DATA.test.targets["ink"]
    )
    assert not torch.equal(image(other.train), image(DATA.train))
    some = multidigits(("ink", "left"), size=30)
    assert [task.name for task in some.tasks] == list(some.train.targets) == ["ink", "left"]
    scale = some.task("ink").settings()["scale"]
    assert scale[0][0] == pytest.approx(float(some.train.targets["ink"].mean()), rel=1e-5)
    with pytest.raises(InputError, match="unknown task 'lefd', expected some of"):
        multidigits(("lefd",))


def test_a_network_learns_them() -> None:
    torch.manual_seed(0)
    data = multidigits(("left", "ink"), size=900)
    model = pt.Model(data.encoder(), data.tasks)
    fitted = pt.fit(model, data.train, data.validation, **(dict(data.settings) | {"epochs": 10}))
    assert fitted.metrics["left"]["accuracy"] > 0.6 and fitted.metrics["ink"]["r2"] > 0.8


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 3))
def test_a_split_by_class_is_a_partition_with_the_classes_divided_alike(values: list[int], seed: int) -> None:
    labels = torch.tensor(values)
    parts = split_by_class(labels, (0.6, 0.2, 0.2), seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(values)))
    for label in set(values):
        count = values.count(label)
        for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
            assert abs(int((labels[part] == label).sum()) - share * count) <= 1
    again = split_by_class(labels, (0.6, 0.2, 0.2), seed)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


# idx files


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_an_idx_file_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], packed: bool, seed: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.getbasetemp() / "array"
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    assert np.array_equal(read_idx(path).numpy(), array)


GOOD = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "starts with nothing, expected an idx file"),
        (b"\x89PNG....", "starts with 89504e47, expected an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01....", "starts with 00000d01, expected an idx file of unsigned bytes"),
        (GOOD[:9], "9 bytes, expected a header of 16 for 3 dimensions"),
        (GOOD[:-1], r"23 bytes of data for shape \(2, 3, 4\), expected 24"),
        (GOOD + b"x", r"25 bytes of data for shape \(2, 3, 4\), expected 24"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"x" * 8, "expected 79228162458924105385300197375"),
        (gzip.compress(GOOD, mtime=0)[:-9], "cannot be read"),
        (gzip.compress(GOOD, mtime=0)[:12] + b"\0" * 20, "cannot be read"),
    ],
)
def test_an_idx_file_that_cannot_be_read_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "some-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"some-idx3-ubyte: .*{words}"):
        read_idx(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(tmp_path / "absent")


def folder_of(path: Path, train: int = 60, test: int = 20, packed: bool = False) -> Path:
    rng = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        images = idx(rng.integers(0, 256, (count, 6, 6), dtype=np.uint8))
        labels = idx((np.arange(count) % 5).astype(np.uint8))
        for content, name in ((images, "images-idx3-ubyte"), (labels, "labels-idx1-ubyte")):
            target = path / f"{prefix}-{name}{'.gz' if packed else ''}"
            target.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_idx_files_becomes_a_data_set(packed: bool, tmp_path: Path) -> None:
    data = multi_images(folder_of(tmp_path, packed=packed), TASKS)
    assert image(data.train).shape == (50, 1, 14, 14) and len(data.validation) == 10 and len(data.test) == 20
    assert [task.name for task in data.tasks] == list(TASKS)
    assert len(data.provenance["files"]) == 4
    sized = multi_images(tmp_path, size=200)
    assert [len(s) for s in (sized.train, sized.validation, sized.test)] == [200, 40, 80]
    assert pt.Model(data.encoder(), data.tasks)(image(data.train)[:2])["left"].shape == (2, 5)


def test_a_folder_without_its_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found none for train\*-images-idx3-ubyte"):
        multi_images(tmp_path)
    folder_of(tmp_path)
    (tmp_path / "train-2-images-idx3-ubyte").write_bytes(GOOD)
    with pytest.raises(InputError, match=r"train-2-images-idx3-ubyte'.*expected one file"):
        multi_images(tmp_path)
    (tmp_path / "train-2-images-idx3-ubyte").unlink()
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(7, np.uint8)))
    with pytest.raises(InputError, match=r"shape \(60, 6, 6\) beside labels \(7,\)"):
        multi_images(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_and_its_kin(name: str) -> None:
    folder = Path(os.environ.get("POLYTASK_DATA", "absent")) / name
    if not folder.is_dir():
        pytest.skip(f"no folder {name} in POLYTASK_DATA")
    data = multi_images(folder, size=600)
    assert image(data.train).shape == (600, 1, 36, 36) and 100 < len(data.validation) <= 120 and len(data.test) > 60
    assert set(data.train.targets["left"].tolist()) == set(range(10))
    assert 0.05 < float(image(data.train).mean()) < 0.5
