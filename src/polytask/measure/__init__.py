"""Measure: whether any of it helped."""

from polytask.measure.delta import delta_m, skill

__all__ = ["delta_m", "skill"]
