"""Shrink: a smaller model within a budget, with no task below its floor."""

from polytask.shrink.groups import Group, Member, Removed, Structure, find_structure
from polytask.shrink.removal import Shrunk, masked, remove, resize

__all__ = ["Group", "Member", "Removed", "Shrunk", "Structure", "find_structure", "masked", "remove", "resize"]
