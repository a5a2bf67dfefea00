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
from polytask.balance.estimated import Estimated
from polytask.balance.fixed import Fixed
from polytask.balance.mgda import MGDA
from polytask.balance.task_gradients import Backward, TaskGradients
from polytask.balance.torchjd import TorchJD
from polytask.balance.uncertainty import Uncertainty
from polytask.balance.upgrad import UPGrad

__all__ = [
    "MGDA",
    "Backward",
    "Balancer",
    "Equal",
    "Estimated",
    "Evaluate",
    "Fixed",
    "GradientBalancer",
    "GramianWeighting",
    "JacobianAggregator",
    "LossWeighting",
    "TaskGradients",
    "TorchJD",
    "UPGrad",
    "Uncertainty",
    "balancers",
    "gradient_cosines",
]
