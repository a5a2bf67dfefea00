"""Measure: whether any of it helped."""

from polytask.measure.delta import delta_m, skill
from polytask.pareto import hypervolume

__all__ = ["delta_m", "hypervolume", "skill"]
