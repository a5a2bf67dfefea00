"""Data: sets in memory, tables, images, and mixtures of streams."""

from polytask.data.examples import Batch, DataSet, Examples, Inputs, to_device

__all__ = ["Batch", "DataSet", "Examples", "Inputs", "to_device"]
