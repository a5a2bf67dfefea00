"""Digits overlaid two by two: the Multi-MNIST construction, on data inside the package's dependencies or in idx files."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.data.examples import DataSet, Examples
from polytask.errors import InputError
from polytask.nn.conv import ConvEncoder
from polytask.task import Task

TASKS = ("left", "right", "parity", "larger", "ink")


def multidigits(tasks: Sequence[str] = ("left", "right", "parity", "ink"), size: int = 1000, seed: int = 0) -> DataSet:
    """Handwritten digits overlaid two by two: real data that needs no download.

    The construction is Multi-MNIST's (Sabour, Frosst and Hinton, *Dynamic routing between capsules*, 2017; as a
    multi-task problem in Sener and Koltun, 2018) on scikit-learn's 1,797 digits of 8x8 pixels: one digit at the top left
    and one at the bottom right of an 11x11 image, joined by the larger value of each pixel. The *source* digits are split
    60/20/20, by class, before they are overlaid: no digit occurs in two splits.

    Args:
        tasks: any of ``left`` and ``right`` (which digit: 10 classes), ``parity`` (is the sum of the two odd), ``larger``
            (is the left digit the larger one), ``ink`` (how much of the image is inked, in percent).
        size: training images; the validation split has as many and the test split twice as many. Few images are what
            makes tasks matter to each other: at 1,000 ``left`` and ``right`` help ``parity``, and ``ink`` conflicts.
        seed: of the split and of the pairing.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels.reshape(-1, 8, 8) / 16).astype(np.float32))
    digits = torch.from_numpy(labels.astype(np.int64))
    train, validation, test = split_by_class(digits, (0.6, 0.2, 0.2), seed)
    return _overlaid(
        "multidigits",
        [(images[i], digits[i]) for i in (train, validation, test)],
        [str(i) for i in range(10)],
        tasks,
        canvas=11,
        sizes=(size, size, 2 * size),
        seed=seed,
        provenance={"source": "scikit-learn load_digits", "seed": seed},
    )


def multi_images(
    folder: Path | str, tasks: Sequence[str] = ("left", "right"), size: int | None = None, seed: int = 0
) -> DataSet:
    """MultiMNIST or MultiFashion from a folder of idx files: 28x28 images overlaid on a 36x36 canvas.

    The folder holds, plain or gzipped, ``train*-images-idx3-ubyte`` and ``train*-labels-idx1-ubyte``, and the same with
    ``t10k*`` or ``test*``. A sixth of the training images is set aside for validation before images are overlaid.

    Args:
        folder: where the idx files are.
        tasks: as for `multidigits`; ``parity`` and ``larger`` compare the labels' numbers.
        size: training pairs; by default one for each training image. Validation and test in the proportion of their images.
        seed: of the split and of the pairing.
    """
    folder = Path(folder)
    images, labels = read_idx_images(folder, ("train",))
    test_images, test_labels = read_idx_images(folder, ("t10k", "test"))
    classes = int(max(labels.max(), test_labels.max())) + 1
    train, validation = split_by_class(labels, (5 / 6, 1 / 6), seed)
    parts = [(images[train], labels[train]), (images[validation], labels[validation]), (test_images, test_labels)]
    size = size or len(train)
    height = images.shape[-1]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*idx*"))}
    return _overlaid(
        folder.name,
        parts,
        [str(i) for i in range(classes)],
        tasks,
        canvas=height + 8,
        sizes=(size, max(1, size * len(validation) // len(train)), max(1, size * len(test_labels) // len(train))),
        seed=seed,
        provenance={"files": hashes, "seed": seed},
    )


def split_by_class(labels: Tensor, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Indices of ``labels`` in parts of the given shares, each class divided alike; disjoint, and together everything."""
    rng = np.random.default_rng(seed)
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in sorted(set(labels.tolist())):
        index = torch.nonzero(labels == label).flatten()
        index = index[torch.from_numpy(rng.permutation(len(index)))]
        edges = [round(len(index) * edge) for edge in np.cumsum([0.0, *shares])]
        for part, start, end in zip(parts, edges, edges[1:], strict=False):
            part.append(index[start:end])
    return [torch.cat(part) for part in parts]


def read_idx(path: Path | str) -> Tensor:
    """The array of unsigned bytes in an idx file (plain or gzipped), any number of dimensions, as a uint8 tensor."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise InputError(
            f"{path}: starts with {raw[:4].hex() or 'nothing'}, expected an idx file of unsigned bytes (000008..)"
        )
    dimensions = raw[3]
    header = 4 + 4 * dimensions
    if len(raw) < header:
        raise InputError(f"{path}: {len(raw)} bytes, expected a header of {header} for {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise InputError(f"{path}: {len(raw) - header} bytes of data for shape {shape}, expected {math.prod(shape)}")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())


def read_idx_images(folder: Path, prefixes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Images as floats in [0, 1], ``(N, H, W)``, and labels as integers, ``(N,)``, of the idx files in a folder, plain or
    gzipped, whose names start with one of ``prefixes``. `InputError` where that is not one file of each, or they differ."""
    found = {}
    for what in ("images-idx3", "labels-idx1"):
        paths = sorted(p for prefix in prefixes for p in folder.glob(f"{prefix}*-{what}-ubyte*"))
        if len(paths) != 1:
            names = [p.name for p in paths] or "none"
            raise InputError(f"{folder}: found {names} for {'/'.join(prefixes)}*-{what}-ubyte[.gz], expected one file")
        found[what] = (paths[0], read_idx(paths[0]))
    (image_path, images), (label_path, labels) = found.values()
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise InputError(
            f"{image_path}: shape {tuple(images.shape)} beside labels {tuple(labels.shape)} in {label_path.name}, "
            "expected (N, H, W) and (N,)"
        )
    return images.float() / 255, labels.long()


def _overlaid(
    name: str,
    parts: Sequence[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    tasks: Sequence[str],
    canvas: int,
    sizes: Sequence[int],
    seed: int,
    provenance: dict[str, Any],
) -> DataSet:
    kinds = {
        "left": Task.classification("left", classes=classes),
        "right": Task.classification("right", classes=classes),
        "parity": Task.binary("parity", classes=["even", "odd"]),
        "larger": Task.binary("larger", classes=["right", "left"]),
        "ink": Task.regression("ink", scale="standard"),
    }
    for task in tasks:
        if task not in kinds:
            raise InputError(f"{name}: unknown task {task!r}, expected some of {list(kinds)}")
    rng = np.random.default_rng([seed, 1])
    splits = []
    for (images, labels), size in zip(parts, sizes, strict=True):
        first, second = (torch.from_numpy(rng.integers(len(images), size=size)) for _ in range(2))
        side = images.shape[-1]
        joined = torch.zeros(size, 1, canvas, canvas)
        joined[:, 0, :side, :side] = images[first]
        joined[:, 0, -side:, -side:] = torch.maximum(joined[:, 0, -side:, -side:], images[second])
        a, b = labels[first], labels[second]
        targets = {
            "left": a,
            "right": b,
            "parity": ((a + b) % 2).float(),
            "larger": (a > b).float(),
            "ink": 100 * joined.mean((1, 2, 3)),
        }
        splits.append(Examples(joined, {task: targets[task] for task in tasks}))
    return DataSet(
        name=name,
        tasks=[kinds[task] for task in tasks],
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        encoder=lambda: ConvEncoder(channels=(1, 16, 32), width=128, size=canvas),
        settings={"batch_size": 64, "lr": 3e-3, "epochs": max(3, min(20, 20_000 // sizes[0]))},
        provenance=provenance,
    )
