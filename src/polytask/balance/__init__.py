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
from polytask.balance._bilevel import BilevelWeighting
from polytask.balance.aligned import AlignedMTL
from polytask.balance.auto_lambda import AutoLambda
from polytask.balance.cagrad import CAGrad
from polytask.balance.config import ConFIG
from polytask.balance.conflict import gradient_cosines
from polytask.balance.db_mtl import DBMTL
from polytask.balance.db_mtl_loss import LogLosses
from polytask.balance.dualproj import DualProj
from polytask.balance.dwa import DWA
from polytask.balance.engine.passes import Backward
from polytask.balance.engine.task_gradients import TaskGradients
from polytask.balance.equal import Equal
from polytask.balance.estimated import Estimated, mgda_ub
from polytask.balance.excess import ExcessMTL
from polytask.balance.fairgrad import FairGrad
from polytask.balance.famo import FAMO
from polytask.balance.fixed import Fixed
from polytask.balance.flat import FlatRegions
from polytask.balance.forum import FORUM
from polytask.balance.gls import GLS
from polytask.balance.graddrop import GradDrop
from polytask.balance.gradnorm import GradNorm
from polytask.balance.gradvac import GradVac
from polytask.balance.imtl_g import IMTLG
from polytask.balance.imtl_l import IMTLL
from polytask.balance.krum import Krum
from polytask.balance.mgda import MGDA, LossMGDA
from polytask.balance.moco import MoCo
from polytask.balance.modo import MoDo
from polytask.balance.moml import MOML
from polytask.balance.nash_mtl import NashMTL
from polytask.balance.pcgrad import PCGrad
from polytask.balance.random import RandomWeights
from polytask.balance.rlw import RLW
from polytask.balance.sam import SAM, asam
from polytask.balance.sdmgrad import SDMGrad
from polytask.balance.stch import STCH
from polytask.balance.torchjd import TorchJD
from polytask.balance.trimmed_mean import TrimmedMean
from polytask.balance.uncertainty import Uncertainty
from polytask.balance.upgrad import UPGrad

__all__ = [
    "DBMTL",
    "DWA",
    "FAMO",
    "FORUM",
    "GLS",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "MOML",
    "RLW",
    "SAM",
    "STCH",
    "AlignedMTL",
    "AutoLambda",
    "Backward",
    "Balancer",
    "BilevelWeighting",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "Equal",
    "Estimated",
    "Evaluate",
    "ExcessMTL",
    "FairGrad",
    "Fixed",
    "FlatRegions",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GradientBalancer",
    "GramianWeighting",
    "JacobianAggregator",
    "Krum",
    "LogLosses",
    "LossMGDA",
    "LossWeighting",
    "MoCo",
    "MoDo",
    "NashMTL",
    "PCGrad",
    "RandomWeights",
    "SDMGrad",
    "TaskGradients",
    "TorchJD",
    "TrimmedMean",
    "UPGrad",
    "Uncertainty",
    "asam",
    "balancers",
    "gradient_cosines",
    "mgda_ub",
]
