"""Comparison: `compare`, polytask's main job."""

from polytask.comparison.compare import DEFAULT_METHODS, compare

__all__ = ["DEFAULT_METHODS", "compare"]
