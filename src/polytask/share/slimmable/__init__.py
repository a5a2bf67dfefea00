"""Networks of any width: slimmable layers, training all widths at once, and what to choose within a budget."""

from polytask.cost import macs
from polytask.nn.recalibration import recalibrate
from polytask.share.slimmable.chain import Slimmable, Widths
from polytask.share.slimmable.configuration import Configuration
from polytask.share.slimmable.containers import Residual
from polytask.share.slimmable.cost import Costs
from polytask.share.slimmable.distillation import output_distance, representation_distance
from polytask.share.slimmable.layers import WIDTHS, SlimmableConv2d, SlimmableLinear, narrowed
from polytask.share.slimmable.norms import (
    RecalibratedBatchNorm,
    SlimmableGroupNorm,
    SlimmableLayerNorm,
    SwitchableBatchNorm,
)
from polytask.share.slimmable.sandwich import Sandwich
from polytask.share.slimmable.search import decoder_widths, find_configuration
from polytask.share.slimmable.supernet import Supernet

__all__ = [
    "WIDTHS",
    "Configuration",
    "Costs",
    "RecalibratedBatchNorm",
    "Residual",
    "Sandwich",
    "Slimmable",
    "SlimmableConv2d",
    "SlimmableGroupNorm",
    "SlimmableLayerNorm",
    "SlimmableLinear",
    "Supernet",
    "SwitchableBatchNorm",
    "Widths",
    "decoder_widths",
    "find_configuration",
    "macs",
    "narrowed",
    "output_distance",
    "recalibrate",
    "representation_distance",
]
