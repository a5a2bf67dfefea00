"""The statistics of batch norms, measured anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from polytask.nn.modes import evaluating


@torch.no_grad()
def recalibrate(network: nn.Module, inputs: Iterable[Any]) -> None:
    """Give every batch norm of a plain ``network`` the mean statistics of these batches, in place.

    What is cut out of a network with batch norms needs it: its activations have other statistics than those of any other
    width. A few hundred examples are enough, and labels are not needed (Yu and Huang, *Universally slimmable networks and
    improved training techniques*, ICCV 2019, Section 3.3). Modules keep their modes; dropout is off meanwhile.

    Args:
        network: called with each batch; batch norms without running statistics stay as they are.
        inputs: batches of one size, as ``network`` takes them.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    momenta = {norm: norm.momentum for norm in norms}
    try:
        with evaluating(network):
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
                norm.momentum = None  # the mean over all batches
            for batch in inputs:
                network(batch)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
