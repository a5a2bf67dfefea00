"""Shrink: a smaller model within a budget, with no task below its floor; `polytask.shrink.search` finds sub-networks."""

from polytask.shrink.atoms import Atoms, Slimming, find_atoms, ramp
from polytask.shrink.budgets import Budget, Floor, Row, Shrinking, prune_to, shrink
from polytask.shrink.by_task import Cost, Losses, Pruned, Step, Tolerances, decay, prune_by_task, prune_in_rounds
from polytask.shrink.criteria import Criterion, criteria, overall, uniform, weakest
from polytask.shrink.folding import fold
from polytask.shrink.groups import Group, Member, Removed, Structure, find_structure
from polytask.shrink.masks import (
    Masks,
    Scope,
    cubic,
    load_sparse,
    magnitude_masks,
    maskable,
    masks_by_score,
    save_sparse,
    stepwise,
)
from polytask.shrink.removal import Shrunk, masked, remove, resize
from polytask.shrink.saliency import grasp_masks, random_masks, shuffled, snip_masks, synflow_masks
from polytask.shrink.tickets import Ticket

__all__ = [
    "Atoms",
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
    "Scope",
    "Shrinking",
    "Shrunk",
    "Slimming",
    "Step",
    "Structure",
    "Ticket",
    "Tolerances",
    "criteria",
    "cubic",
    "decay",
    "find_atoms",
    "find_structure",
    "fold",
    "grasp_masks",
    "load_sparse",
    "magnitude_masks",
    "maskable",
    "masked",
    "masks_by_score",
    "overall",
    "prune_by_task",
    "prune_in_rounds",
    "prune_to",
    "ramp",
    "random_masks",
    "remove",
    "resize",
    "save_sparse",
    "shrink",
    "shuffled",
    "snip_masks",
    "stepwise",
    "synflow_masks",
    "uniform",
    "weakest",
]
