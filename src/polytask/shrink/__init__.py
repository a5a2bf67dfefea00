"""Shrink: smaller models within a budget."""

from polytask.shrink import search

__all__ = ["search"]
