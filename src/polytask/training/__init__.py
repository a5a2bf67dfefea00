"""Training: `fit`, and `evaluate` for what it reached."""

from polytask.training.evaluate import Metrics, evaluate, evaluate_constant
from polytask.training.fit import fit
from polytask.training.hardware import fabric
from polytask.training.run import Fitted

__all__ = ["Fitted", "Metrics", "evaluate", "evaluate_constant", "fabric", "fit"]
