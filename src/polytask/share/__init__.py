"""Share: which parameters a task uses.

`sharings` lists the ways that lie between a shared encoder and the heads, `insertables` those that are inserted into a
network.
"""

from polytask.share._sharing import Pathway, Sharing, TaskModules, sharings
from polytask.share.adapter import Adapter
from polytask.share.hard import Hard
from polytask.share.ia3 import IA3
from polytask.share.insertion import Insertable, Inserted, Part, insert, insertables, load_inserted, parts_of
from polytask.share.lora import LoRA
from polytask.share.mmoe import MMoE
from polytask.share.task_parameters import TaskParameters

__all__ = [
    "IA3",
    "Adapter",
    "Hard",
    "Insertable",
    "Inserted",
    "LoRA",
    "MMoE",
    "Part",
    "Pathway",
    "Sharing",
    "TaskModules",
    "TaskParameters",
    "insert",
    "insertables",
    "load_inserted",
    "parts_of",
    "sharings",
]
