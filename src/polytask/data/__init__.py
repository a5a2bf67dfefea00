"""Data: sets in memory, tables, images, and mixtures of streams."""

from polytask.data.digits import multi_images, multidigits, read_idx, read_idx_images
from polytask.data.examples import Batch, DataSet, Examples, Inputs, to_device
from polytask.data.mixture import Mixture
from polytask.data.multipliers import Multipliers
from polytask.data.sampling import (
    Annealed,
    AntiCurriculum,
    Capped,
    Curriculum,
    Goal,
    Promotion,
    Sampling,
    Schedule,
    Temperature,
)
from polytask.data.stream import Batches, Loader, Stream, as_stream

__all__ = [
    "Annealed",
    "AntiCurriculum",
    "Batch",
    "Batches",
    "Capped",
    "Curriculum",
    "DataSet",
    "Examples",
    "Goal",
    "Inputs",
    "Loader",
    "Mixture",
    "Multipliers",
    "Promotion",
    "Sampling",
    "Schedule",
    "Stream",
    "Temperature",
    "as_stream",
    "multi_images",
    "multidigits",
    "read_idx",
    "read_idx_images",
    "to_device",
]
