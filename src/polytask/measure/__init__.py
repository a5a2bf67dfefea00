"""Measure: whether any of it helped."""

from polytask.measure.delta import delta_m, skill
from polytask.measure.hypervolume import hypervolume

__all__ = ["delta_m", "hypervolume", "skill"]
