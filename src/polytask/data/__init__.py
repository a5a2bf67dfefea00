"""Data: sets in memory, tables, images, and mixtures of streams."""

from polytask.data.digits import multi_images, multidigits, read_idx
from polytask.data.examples import Batch, DataSet, Examples, Inputs, to_device
from polytask.data.mixture import Mixture
from polytask.data.stream import Batches, Loader, Stream, as_stream

__all__ = [
    "Batch",
    "Batches",
    "DataSet",
    "Examples",
    "Inputs",
    "Loader",
    "Mixture",
    "Stream",
    "as_stream",
    "multi_images",
    "multidigits",
    "read_idx",
    "to_device",
]
