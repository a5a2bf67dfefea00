"""Early exits: heads at any depth of a chain of blocks, and examples that leave as soon as one is sure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from polytask.cost import count
from polytask.errors import InputError, suggest

Confidence: TypeAlias = Literal["probability", "entropy", "margin"]
Answer: TypeAlias = Literal["last", "surest"]


class Exited(NamedTuple):
    """What came out, and where.

    Attributes:
        outputs: ``(N, classes)``, each example's answer: the logits of its exit, or see `EarlyExit.answer`.
        exits: ``(N,)`` int64, which exit it took, and so how much of it was computed.
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
        answer: of an example that leaves at no early exit: ``"last"``, what the last exit says, or ``"surest"``, what the
            exit of the greatest confidence says (Kaya et al., *Shallow-deep networks*, ICML 2019).
        agree: how many exits in a row have to name one class before an example may leave at the last of them: 2 for two
            consecutive exits (Zhou et al., *BERT loses patience*, NeurIPS 2020, whose patience is one less; with thresholds
            of 0 that is their whole rule).

    Attributes:
        thresholds: of all exits but the last, ``(exits - 1,)``; 1 at first, so that hardly anything leaves early.
            `calibrate` finds some. Above 1 nothing leaves.
        temperatures: of all exits, ``(exits,)``, 1 at first: confidence is that of the logits divided by them.
            `polytask.route.fit_temperatures` finds some.

    The rule may be changed at any time: ``answer``, ``agree`` and ``confidence`` are attributes too.

    >>> model = EarlyExit([nn.Linear(4, 8), nn.Linear(8, 8)], {1: nn.Linear(8, 3), 2: nn.Linear(8, 3)})
    >>> [tuple(logits.shape) for logits in model(torch.randn(5, 4))]
    [(5, 3), (5, 3)]
    >>> model.eval().thresholds.fill_(0.0)
    tensor([0.])
    >>> model.run(torch.randn(5, 4)).exits.tolist()
    [0, 0, 0, 0, 0]
    """

    thresholds: Tensor
    temperatures: Tensor

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        heads: Mapping[int, nn.Module],
        confidence: Confidence = "probability",
        answer: Answer = "last",
        agree: int = 1,
    ) -> None:
        super().__init__()
        if not blocks or len(blocks) not in heads or not all(1 <= depth <= len(blocks) for depth in heads):
            raise InputError(
                f"heads behind {sorted(heads)} of {len(blocks)} blocks, expected numbers from 1, and one behind the last"
            )
        if confidence not in get_args(Confidence):
            raise InputError(f"unknown confidence {confidence!r}: {suggest(confidence, get_args(Confidence))}")
        if answer not in get_args(Answer) or agree < 1:
            raise InputError(f"answer {answer!r}, agree {agree}: expected 'last' or 'surest', and 1 or more")
        self.blocks = nn.ModuleList(blocks)
        self.depths = tuple(sorted(heads))
        self.heads = nn.ModuleList([heads[depth] for depth in self.depths])
        self.confidence: Confidence = confidence
        self.answer: Answer = answer
        self.agree = agree
        self.register_buffer("thresholds", torch.ones(len(self.depths) - 1))
        self.register_buffer("temperatures", torch.ones(len(self.depths)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The logits of all exits, first to last."""
        outputs, exit_ = [], 0
        for depth, block in enumerate(self.blocks, start=1):
            x = block(x)
            if depth == self.depths[exit_]:
                outputs.append(self.heads[exit_](x))
                exit_ += 1
        return outputs

    def run(self, x: Tensor, *, gradients: bool = False) -> Exited:
        """Each example as far as it has to go, in evaluation mode.

        Args:
            x: ``(N, ...)``.
            gradients: record them; they flow through what was computed, and only through the logits of the answer.
        """
        if self.training:
            raise InputError("early exit: run in training mode, expected model.eval() before it")
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
            return self._run(x)

    def _run(self, x: Tensor) -> Exited:
        rows, last = torch.arange(len(x), device=x.device), len(self.depths) - 1
        exits = torch.full_like(rows, last)
        outputs, exit_ = None, 0
        said = torch.full_like(rows, -1)  # of the examples that are still here: the class, how often in a row, how surely
        streak, best = torch.zeros_like(rows), torch.full(rows.shape, -torch.inf, device=x.device)
        for depth, block in enumerate(self.blocks, start=1):
            x = block(x)
            if depth != self.depths[exit_]:
                continue
            logits = self.heads[exit_](x)
            if outputs is None:
                outputs = logits.new_zeros(len(rows), *logits.shape[1:])
            sure, classes = self._sure(logits.detach(), exit_), logits.argmax(1)
            streak, said = torch.where(classes == said, streak + 1, 1), classes
            leaves = torch.zeros_like(rows, dtype=torch.bool)
            if exit_ < last:
                leaves = (sure >= self.thresholds[exit_]) & (streak >= self.agree)
            better = sure > best if self.answer == "surest" else torch.full_like(leaves, exit_ == last)
            written = (leaves | better).nonzero()[:, 0]
            outputs = outputs.index_copy(0, rows[written], logits[written].to(outputs.dtype))
            if exit_ == last:
                break
            exits[rows[leaves]] = exit_
            staying = (~leaves).nonzero()[:, 0]
            rows, x, exit_ = rows[staying], x.index_select(0, staying), exit_ + 1
            said, streak, best = said[staying], streak[staying], best.maximum(sure)[staying]
            if not len(rows):
                break
        assert outputs is not None
        return Exited(outputs, exits)

    def decide(self, logits: Sequence[Tensor]) -> Exited:
        """What `run` gives, from the logits of all exits, ``(N, classes)`` each: one pass serves many rules."""
        if len(logits) != len(self.depths):
            raise InputError(f"logits of {len(logits)} exits, expected {len(self.depths)}")
        sure = torch.stack([self._sure(one.detach(), exit_) for exit_, one in enumerate(logits)])
        classes = [one.argmax(1) for one in logits]
        streaks = [torch.ones_like(classes[0])]
        for before, now in pairwise(classes):
            streaks.append(torch.where(now == before, streaks[-1] + 1, 1))
        least = torch.cat([self.thresholds, sure.new_full((1,), torch.inf)])  # the last exit is no early one
        leaves = (sure >= least[:, None]) & (torch.stack(streaks) >= self.agree)
        early = leaves.any(0)
        exits = torch.where(early, leaves.int().argmax(0), len(logits) - 1)
        source = torch.where(early, exits, sure.argmax(0)) if self.answer == "surest" else exits
        rows = torch.arange(len(source), device=source.device)
        return Exited(torch.stack(list(logits))[source, rows], exits)

    def _sure(self, logits: Tensor, exit_: int) -> Tensor:
        return confidence(logits.float() / self.temperatures[exit_], self.confidence)


class _Apart(nn.Module):
    """One use of a module, so that a module which is used twice is counted twice."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.module(x)
        return found


def exit_costs(network: EarlyExit, x: Tensor) -> list[int]:
    """The multiply-accumulate operations up to and with each exit, for one example: its blocks, and all heads on the way.

    Args:
        network: on any device; nothing is computed.
        x: examples, of which the shape of the first counts.

    >>> network = EarlyExit([nn.Linear(4, 8), nn.Linear(8, 8)], {1: nn.Linear(8, 3), 2: nn.Linear(8, 3)})
    >>> exit_costs(network, torch.empty(1, 4))
    [56, 144]
    """
    heads = zip(network.depths, network.heads, strict=True)
    apart = EarlyExit([_Apart(block) for block in network.blocks], {depth: _Apart(head) for depth, head in heads})
    counts = count(apart, x[:1]).modules
    blocks = list(accumulate(counts[f"blocks.{place}"].macs for place in range(len(network.blocks))))
    before = accumulate(counts[f"heads.{exit_}"].macs for exit_ in range(len(network.depths)))
    return [blocks[depth - 1] + some for depth, some in zip(network.depths, before, strict=True)]


def efficacy(exits: Tensor, costs: Sequence[float]) -> float:
    """The part of the work that early exits save: 0 where all examples go through, near 1 where all leave at once.

    It is the area under the curve of the share of examples that have left by a share of the whole cost, as a step function
    (Hong et al., *A panda? No, it's a sloth*, ICLR 2021, have such an area as their efficacy).

    Args:
        exits: ``(N,)`` int64, as `EarlyExit.run` gives them.
        costs: up to and with each exit, such as `exit_costs`.

    >>> efficacy(torch.tensor([0, 1, 1, 1]), [1.0, 4.0])
    0.1875
    """
    shares = torch.tensor(list(costs), dtype=torch.float64) / costs[-1]
    return float((1 - shares)[exits.cpu()].mean())


def calibrate(logits: Sequence[Tensor], costs: Sequence[float], budget: float, kind: Confidence = "probability") -> Tensor:
    """Thresholds with which held-out examples cost at most ``budget`` on average, ``(exits - 1,)``.

    Exit ``k`` gets a part of the examples in proportion to ``q^k``, with the largest ``q`` that the budget allows, and of
    those that have come so far the surest leave (Huang et al., *Multi-scale dense networks*, ICLR 2018).

    Args:
        logits: of all exits on the held-out examples, as `EarlyExit` gives them; divided by its temperatures, if it has any.
        costs: up to and with each exit, rising: operations (`exit_costs`), milliseconds.
        budget: in the same unit; `InputError` where it is below the first exit's cost, which is the least there is.
        kind: of confidence.
    """
    spent = torch.tensor(list(costs), dtype=torch.float64)
    if len(logits) != len(costs) or not len(logits) or not bool((spent.diff() > 0).all()):
        raise InputError(f"costs {list(costs)} of {len(logits)} exits, expected one for each, rising")
    if not budget >= costs[0]:
        raise InputError(f"budget {budget}, expected at least {costs[0]}, what the first exit costs")
    total, places = len(logits[0]), torch.arange(len(costs), dtype=torch.float64)

    def parts(log_q: float) -> Tensor:
        return (places * log_q).softmax(0)

    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(parts(middle) @ spent) <= budget else (low, middle)
    until = (parts(low).cumsum(0) * total - 1e-9).ceil().long().clamp(max=total)  # by then so many have left: no fewer
    thresholds, here = [], torch.arange(total)
    for place in range(len(costs) - 1):
        sure = confidence(logits[place], kind).cpu()[here]
        leave = int(until[place]) - (total - len(here))
        least = sure.sort(descending=True).values[leave - 1] if leave > 0 else torch.tensor(2.0)
        thresholds.append(least)
        here = here[sure < least]
    return torch.stack(thresholds) if thresholds else torch.empty(0)
