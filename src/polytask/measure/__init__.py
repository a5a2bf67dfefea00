"""Measure: whether any of it helped."""

from polytask.measure.delta import delta_m, skill
from polytask.measure.embedding import cluster_nmi, linear_probe
from polytask.measure.ranking import hits_at, mean_reciprocal_rank, pooled
from polytask.pareto import hypervolume

__all__ = [
    "cluster_nmi",
    "delta_m",
    "hits_at",
    "hypervolume",
    "linear_probe",
    "mean_reciprocal_rank",
    "pooled",
    "skill",
]
