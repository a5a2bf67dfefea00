"""Early exits: heads at any depth of a chain of blocks, and examples that leave as soon as one is sure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from polytask.errors import InputError, suggest

Confidence: TypeAlias = Literal["probability", "entropy", "margin"]


class Exited(NamedTuple):
    """What came out, and where.

    Attributes:
        outputs: ``(N, classes)``, each example's at its exit.
        exits: ``(N,)`` int64, which exit it took.
    """

    outputs: Tensor
    exits: Tensor


def confidence(logits: Tensor, kind: Confidence = "probability") -> Tensor:
    """How sure logits ``(N, classes)`` are, ``(N,)`` in [0, 1].

    ``"probability"``: the largest of the softmax; ``"entropy"``: 1 minus the entropy in parts of its largest; ``"margin"``:
    the largest minus the second.
    """
    if kind not in get_args(Confidence):
        raise InputError(f"unknown confidence {kind!r}: {suggest(kind, get_args(Confidence))}")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(f"logits of shape {tuple(logits.shape)}, expected (examples, classes)")
    chances = logits.float().softmax(1)
    if kind == "probability":
        return chances.amax(1)
    if kind == "margin":
        first, second = chances.topk(2, 1).values.unbind(1)
        return first - second
    entropy: Tensor = torch.special.entr(chances).sum(1)
    return 1 - entropy / math.log(logits.shape[1])


class EarlyExit(nn.Module):
    """A chain of blocks with heads along it (Teerapittayanon et al., *BranchyNet*, ICPR 2016).

    Called, it gives the logits of all exits, to be trained together. `run` lets each example leave at the first exit whose
    confidence reaches its threshold; what left is not computed any further.

    Args:
        blocks: any modules, each called with what the one before gives, examples along the first dimension.
        heads: by the number of blocks before it, from 1; there has to be one behind the last block. Each gives logits
            ``(N, classes)``.
        confidence: see `polytask.route.confidence`.

    Attributes:
        thresholds: of all exits but the last, ``(exits - 1,)``; 1 at first, so that hardly anything leaves early.
            `calibrate` finds some.

    >>> model = EarlyExit([nn.Linear(4, 8), nn.Linear(8, 8)], {1: nn.Linear(8, 3), 2: nn.Linear(8, 3)})
    >>> [tuple(logits.shape) for logits in model(torch.randn(5, 4))]
    [(5, 3), (5, 3)]
    >>> model.eval().thresholds.fill_(0.0)
    tensor([0.])
    >>> model.run(torch.randn(5, 4)).exits.tolist()
    [0, 0, 0, 0, 0]
    """

    thresholds: Tensor

    def __init__(
        self, blocks: Sequence[nn.Module], heads: Mapping[int, nn.Module], confidence: Confidence = "probability"
    ) -> None:
        super().__init__()
        if not blocks or len(blocks) not in heads or not all(1 <= depth <= len(blocks) for depth in heads):
            raise InputError(
                f"heads behind {sorted(heads)} of {len(blocks)} blocks, expected numbers from 1, and one behind the last"
            )
        if confidence not in get_args(Confidence):
            raise InputError(f"unknown confidence {confidence!r}: {suggest(confidence, get_args(Confidence))}")
        self.blocks = nn.ModuleList(blocks)
        self.depths = tuple(sorted(heads))
        self.heads = nn.ModuleList([heads[depth] for depth in self.depths])
        self.confidence: Confidence = confidence
        self.register_buffer("thresholds", torch.ones(len(self.depths) - 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The logits of all exits, first to last."""
        outputs, exit_ = [], 0
        for depth, block in enumerate(self.blocks, start=1):
            x = block(x)
            if depth == self.depths[exit_]:
                outputs.append(self.heads[exit_](x))
                exit_ += 1
        return outputs

    @torch.no_grad()
    def run(self, x: Tensor) -> Exited:
        """Each example as far as it has to go, in evaluation mode."""
        if self.training:
            raise InputError("early exit: run in training mode, expected model.eval() before it")
        rows = torch.arange(len(x), device=x.device)
        exits = torch.full_like(rows, len(self.depths) - 1)
        outputs, exit_ = None, 0
        for depth, block in enumerate(self.blocks, start=1):
            x = block(x)
            if depth != self.depths[exit_]:
                continue
            logits = self.heads[exit_](x)
            if outputs is None:
                outputs = logits.new_zeros(len(rows), *logits.shape[1:])
            if exit_ == len(self.thresholds):
                outputs.index_copy_(0, rows, logits.to(outputs.dtype))
                break
            sure = confidence(logits, self.confidence) >= self.thresholds[exit_]
            leaving, staying = sure.nonzero()[:, 0], (~sure).nonzero()[:, 0]
            outputs.index_copy_(0, rows[leaving], logits[leaving].to(outputs.dtype))
            exits[rows[leaving]] = exit_
            rows, x, exit_ = rows[staying], x.index_select(0, staying), exit_ + 1
            if not len(rows):
                break
        assert outputs is not None
        return Exited(outputs, exits)


def calibrate(logits: Sequence[Tensor], costs: Sequence[float], budget: float, kind: Confidence = "probability") -> Tensor:
    """Thresholds with which held-out examples cost at most ``budget`` on average, ``(exits - 1,)``.

    Exit ``k`` gets a part of the examples in proportion to ``q^k``, with the largest ``q`` that the budget allows, and of
    those that have come so far the surest leave (Huang et al., *Multi-scale dense networks*, ICLR 2018).

    Args:
        logits: of all exits on the held-out examples, as `EarlyExit` gives them.
        costs: up to and with each exit, rising: operations, milliseconds.
        budget: in the same unit; `InputError` where it is below the first exit's cost, which is the least there is.
        kind: of confidence.
    """
    spent = torch.tensor(list(costs), dtype=torch.float64)
    if len(logits) != len(costs) or not len(logits) or not bool((spent.diff() > 0).all()):
        raise InputError(f"costs {list(costs)} of {len(logits)} exits, expected one for each, rising")
    if not budget >= costs[0]:
        raise InputError(f"budget {budget}, expected at least {costs[0]}, what the first exit costs")
    count, places = len(logits[0]), torch.arange(len(costs), dtype=torch.float64)

    def parts(log_q: float) -> Tensor:
        return (places * log_q).softmax(0)

    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(parts(middle) @ spent) <= budget else (low, middle)
    until = (parts(low).cumsum(0) * count - 1e-9).ceil().long().clamp(max=count)  # by then so many have left: no fewer
    thresholds, here = [], torch.arange(count)
    for place in range(len(costs) - 1):
        sure = confidence(logits[place], kind).cpu()[here]
        leave = int(until[place]) - (count - len(here))
        least = sure.sort(descending=True).values[leave - 1] if leave > 0 else torch.tensor(2.0)
        thresholds.append(least)
        here = here[sure < least]
    return torch.stack(thresholds) if thresholds else torch.empty(0)
