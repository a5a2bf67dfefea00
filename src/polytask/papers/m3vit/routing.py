"""Which experts tasks use, and what it takes to have their weights where they are used: the accelerator's two schedules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytask.data.examples import Inputs
from polytask.errors import InputError
from polytask.scope import task_scope
from polytask.share import watched_gates


@torch.no_grad()
def expert_use(encoder: nn.Module, inputs: Inputs, tasks: Sequence[str], experts: int) -> Tensor:
    """Each expert's share of the tokens' choices, ``(layers, tasks, experts)``, on one batch, in the encoder's mode."""
    use = []
    for task in tasks:
        with task_scope(task), watched_gates(encoder) as layers:
            encoder(inputs)
        use.append(torch.stack([gates.experts.flatten().bincount(minlength=experts) for gates in layers]))
    counts = torch.stack(use, 1).double()
    return counts / counts.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Traffic:
    """What a schedule costs in one layer.

    Attributes:
        loads: how often an expert's weights are brought in.
        loaded: so many bytes.
        resident: the most bytes of weights that are held at a time.
        queues: bytes of the queues, a number of a token and its weight for each choice, 4 each.
    """

    loads: int
    loaded: int
    resident: int
    queues: int


def token_major(experts: Tensor, expert_bytes: int, held: int = 1) -> Traffic:
    """Tokens one after the other, each by its experts in order; the ``held`` experts that were used last stay.

    Args:
        experts: ``(tokens, k)``, as `Gates` has them.
        expert_bytes: of one expert's weights.
        held: how many fit; as many as there are experts keep everything that was loaded once.
    """
    if held < 1:
        raise InputError(f"token-major: room for {held} experts, expected at least 1")
    cache: OrderedDict[int, None] = OrderedDict()
    loads, most = 0, 0
    for expert in experts.flatten().tolist():
        loads += expert not in cache
        cache[expert] = None
        cache.move_to_end(expert)
        if len(cache) > held:
            cache.popitem(last=False)
        most = max(most, len(cache))
    return Traffic(loads, loads * expert_bytes, most * expert_bytes, 0)


def expert_major(experts: Tensor, expert_bytes: int) -> Traffic:
    """Gates first, which put each token into its experts' queues; then expert by expert, those that have a queue.

    While one is computed the next is loaded beside it: at most two are held, however many there are, and each is loaded
    once. To switch tasks is to use other gates.
    """
    loads = int(experts.flatten().bincount().count_nonzero())
    return Traffic(loads, loads * expert_bytes, min(loads, 2) * expert_bytes, 8 * experts.numel())
