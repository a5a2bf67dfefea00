"""Share: which parameters a task uses. `sharings` lists every way by name."""

from polytask.share._sharing import Pathway, Sharing, TaskModules, sharings
from polytask.share.hard import Hard
from polytask.share.mmoe import MMoE

__all__ = ["Hard", "MMoE", "Pathway", "Sharing", "TaskModules", "sharings"]
