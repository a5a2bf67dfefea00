"""The names of image data sets' idx files, for papers that learn digits or clothes."""

from __future__ import annotations


def idx_files(folder: str, *parts: str) -> tuple[str, ...]:
    """The files of images and of labels of each part, in a data set's folder."""
    return tuple(f"{folder}/{part}-{what}-ubyte.gz" for part in parts for what in ("images-idx3", "labels-idx1"))


MNIST = idx_files("mnist", "train10k", "t10k")
