"""Share: which parameters a task uses.

`sharings` lists the ways that lie between a shared encoder and the heads, `insertables` those that are inserted into a
network.
"""

from polytask.share._sharing import Pathway, Sharing, TaskModules, sharings
from polytask.share.hard import Hard
from polytask.share.insertion import Insertable, Inserted, Part, insert, insertables, load_inserted, parts_of
from polytask.share.lora import LoRA
from polytask.share.mmoe import MMoE

__all__ = [
    "Hard",
    "Insertable",
    "Inserted",
    "LoRA",
    "MMoE",
    "Part",
    "Pathway",
    "Sharing",
    "TaskModules",
    "insert",
    "insertables",
    "load_inserted",
    "parts_of",
    "sharings",
]
