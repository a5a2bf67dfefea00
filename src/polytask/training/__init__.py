"""Training: `fit`, and `evaluate` for what it reached."""

from polytask.training.evaluate import Metrics, evaluate, evaluate_constant
from polytask.training.fit import Fitted, fit
from polytask.training.hardware import fabric

__all__ = ["Fitted", "Metrics", "evaluate", "evaluate_constant", "fabric", "fit"]
