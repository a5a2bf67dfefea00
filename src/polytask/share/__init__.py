"""Share: which parameters a task uses.

`sharings` lists the ways that lie between a shared encoder and the heads, `insertables` those that are inserted into a
network.
"""

from polytask.share import hypernetwork, slimmable
from polytask.share._sharing import Pathway, Sharing, TaskModules, sharings
from polytask.share._sources import transferred
from polytask.share.adapter import Adapter
from polytask.share.adapter_fusion import AdapterFusion
from polytask.share.adapter_soup import soup
from polytask.share.branching import Branching
from polytask.share.cgc import CGC
from polytask.share.cross_stitch import CrossStitch
from polytask.share.dependence import TaskDependent, task_dependent
from polytask.share.dselect_k import DSelectK
from polytask.share.expert_bank import ExpertBank
from polytask.share.gate import Gate, Gates, top_gates, watched_gates
from polytask.share.hard import Hard
from polytask.share.hydra_lora import HydraLoRA
from polytask.share.hypernetwork import HyperNetwork
from polytask.share.ia3 import IA3
from polytask.share.insertion import Insertable, Inserted, Part, insert, insertables, load_inserted, parts_of
from polytask.share.lora import LoRA
from polytask.share.mhr import MHR, as_lora, averaged
from polytask.share.mmoe import MMoE
from polytask.share.moe_lora import MoELoRA
from polytask.share.mtan import MTAN
from polytask.share.nddr import NDDR
from polytask.share.peft import load_peft, save_peft
from polytask.share.penalty import Penalty, penalties
from polytask.share.piggyback import Piggyback, masks_of, set_masks
from polytask.share.ple import PLE
from polytask.share.polytropon import Polytropon
from polytask.share.scalearn import ScaLearn, as_adapter
from polytask.share.slimmable import Sandwich, Slimmable, Supernet
from polytask.share.smora import SMoRA
from polytask.share.task_linear import TaskFeature, TaskLinear
from polytask.share.task_parameters import TaskParameters

__all__ = [
    "CGC",
    "IA3",
    "MHR",
    "MTAN",
    "NDDR",
    "PLE",
    "Adapter",
    "AdapterFusion",
    "Branching",
    "CrossStitch",
    "DSelectK",
    "ExpertBank",
    "Gate",
    "Gates",
    "Hard",
    "HydraLoRA",
    "HyperNetwork",
    "Insertable",
    "Inserted",
    "LoRA",
    "MMoE",
    "MoELoRA",
    "Part",
    "Pathway",
    "Penalty",
    "Piggyback",
    "Polytropon",
    "SMoRA",
    "Sandwich",
    "ScaLearn",
    "Sharing",
    "Slimmable",
    "Supernet",
    "TaskDependent",
    "TaskFeature",
    "TaskLinear",
    "TaskModules",
    "TaskParameters",
    "as_adapter",
    "as_lora",
    "averaged",
    "hypernetwork",
    "insert",
    "insertables",
    "load_inserted",
    "load_peft",
    "masks_of",
    "parts_of",
    "penalties",
    "save_peft",
    "set_masks",
    "sharings",
    "slimmable",
    "soup",
    "task_dependent",
    "top_gates",
    "transferred",
    "watched_gates",
]
