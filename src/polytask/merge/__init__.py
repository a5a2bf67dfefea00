"""Merge: many fine-tuned models into one, in memory that does not depend on their size."""

from polytask.merge.checkpoint import open_checkpoint
from polytask.merge.coefficients import Coefficients, entropy, learn, load_weights, rule_by_tensor, save_weights
from polytask.merge.comparison import Interference, interference, interference_of
from polytask.merge.engine.rule import Rule, merge_rules
from polytask.merge.factors import merge_adapters
from polytask.merge.mask_scales import best_scales
from polytask.merge.measurements import save_measured
from polytask.merge.merging import merge_checkpoints, merge_state_dicts
from polytask.merge.plan import Plan, Policy, make_plan
from polytask.merge.representation import Similarity, linear_cka, representations
from polytask.merge.rules.average import Average
from polytask.merge.rules.breadcrumbs import Breadcrumbs
from polytask.merge.rules.consensus import Consensus
from polytask.merge.rules.dare import DARE
from polytask.merge.rules.della import DELLA
from polytask.merge.rules.emr import EMR
from polytask.merge.rules.fisher import Fisher, fisher_diagonal, merge_fisher
from polytask.merge.rules.model_stock import ModelStock
from polytask.merge.rules.multi_slerp import MultiSLERP
from polytask.merge.rules.pcb import PCB
from polytask.merge.rules.regmean import Gram, RegMean, gram_matrices, merge_regmean
from polytask.merge.rules.slerp import SLERP
from polytask.merge.rules.task_arithmetic import TaskArithmetic
from polytask.merge.rules.ties import TIES, trim_and_elect
from polytask.merge.searching import Found, Range, search
from polytask.merge.task_masks import TaskMasks

__all__ = [
    "DARE",
    "DELLA",
    "EMR",
    "PCB",
    "SLERP",
    "TIES",
    "Average",
    "Breadcrumbs",
    "Coefficients",
    "Consensus",
    "Fisher",
    "Found",
    "Gram",
    "Interference",
    "ModelStock",
    "MultiSLERP",
    "Plan",
    "Policy",
    "Range",
    "RegMean",
    "Rule",
    "Similarity",
    "TaskArithmetic",
    "TaskMasks",
    "best_scales",
    "entropy",
    "fisher_diagonal",
    "gram_matrices",
    "interference",
    "interference_of",
    "learn",
    "linear_cka",
    "load_weights",
    "make_plan",
    "merge_adapters",
    "merge_checkpoints",
    "merge_fisher",
    "merge_regmean",
    "merge_rules",
    "merge_state_dicts",
    "open_checkpoint",
    "representations",
    "rule_by_tensor",
    "save_measured",
    "save_weights",
    "search",
    "trim_and_elect",
]
