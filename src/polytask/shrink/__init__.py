"""Shrink: a smaller model within a budget, with no task below its floor; `polytask.shrink.search` finds sub-networks."""

from polytask.shrink.budgets import Budget, Floor, Row, Shrinking, prune_to, shrink
from polytask.shrink.by_task import Cost, Losses, Pruned, Step, Tolerances, decay, prune_by_task, prune_in_rounds
from polytask.shrink.criteria import Criterion, criteria, overall, uniform, weakest
from polytask.shrink.groups import Group, Member, Removed, Structure, find_structure
from polytask.shrink.masks import Masks, cubic, load_sparse, magnitude_masks, save_sparse
from polytask.shrink.removal import Shrunk, masked, remove, resize

__all__ = [
    "Budget",
    "Cost",
    "Criterion",
    "Floor",
    "Group",
    "Losses",
    "Masks",
    "Member",
    "Pruned",
    "Removed",
    "Row",
    "Shrinking",
    "Shrunk",
    "Step",
    "Structure",
    "Tolerances",
    "criteria",
    "cubic",
    "decay",
    "find_structure",
    "load_sparse",
    "magnitude_masks",
    "masked",
    "overall",
    "prune_by_task",
    "prune_in_rounds",
    "prune_to",
    "remove",
    "resize",
    "save_sparse",
    "shrink",
    "uniform",
    "weakest",
]
