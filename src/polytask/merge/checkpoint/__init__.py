"""Checkpoints as the Hugging Face ecosystem writes them, read lazily: headers first, then a piece of a tensor at a time."""

from polytask.merge.checkpoint._checkpoint import Checkpoint, Entry
from polytask.merge.checkpoint.adapter import open_adapter
from polytask.merge.checkpoint.opening import is_adapter, open_checkpoint

__all__ = ["Checkpoint", "Entry", "is_adapter", "open_adapter", "open_checkpoint"]
