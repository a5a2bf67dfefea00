"""Balance: how one step serves many losses. `balancers` lists every method by name."""

from polytask.balance._balancer import (
    Balancer,
    Evaluate,
    GradientBalancer,
    GramianWeighting,
    JacobianAggregator,
    LossWeighting,
    balancers,
)
from polytask.balance.conflict import gradient_cosines
from polytask.balance.equal import Equal
from polytask.balance.fixed import Fixed
from polytask.balance.task_gradients import Backward, TaskGradients
from polytask.balance.uncertainty import Uncertainty

__all__ = [
    "Backward",
    "Balancer",
    "Equal",
    "Evaluate",
    "Fixed",
    "GradientBalancer",
    "GramianWeighting",
    "JacobianAggregator",
    "LossWeighting",
    "TaskGradients",
    "Uncertainty",
    "balancers",
    "gradient_cosines",
]
