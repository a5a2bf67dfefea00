"""PCB-Merging: parameter competition balancing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.merge.engine.chunk import Chunk
from polytask.merge.engine.fused import fused
from polytask.merge.engine.rule import Cuts, PerModel, Rule, magnitudes, merge_rules, per_model
from polytask.merge.engine.run import cuts_of
from polytask.merge.rules._arithmetic import weighted_sum

Array = np.ndarray[Any, np.dtype[Any]]
Agreement: TypeAlias = Literal["sum", "normalized_sum", "pairs"]

LARGEST_EXPONENT = 60.0
"""Of the importance. Beyond it a score is scaled down, which drops out when scores are normalised."""


def _normalize(row: Array, low: float, high: float) -> None:
    values = torch.from_numpy(row)
    if high > low:
        values.clamp_(low, high).sub_(low).div_(torch.tensor(high, dtype=values.dtype) - low)
    else:
        values.zero_()


@fused(_normalize)
def normalize(row: Array, low: float, high: float) -> None:
    """Clamp ``row``, ``(n,)``, to what is between ``low`` and ``high`` and stretch it to [0, 1], in place.

    Where ``low`` is not below ``high`` there is nothing to compete with, and it becomes 0.
    """
    least, most = row.dtype.type(low), row.dtype.type(high)
    if high > low:
        for i in range(len(row)):
            raised = least if row[i] < least else row[i]
            row[i] = ((most if raised > most else raised) - least) / (most - least)
    else:
        row[:] = row.dtype.type(0)


def _importance(row: Array, low: float, high: float, count: int, less: float, out: Array) -> None:
    np.abs(row, out=out)
    _normalize(out, low, high)
    out *= out
    out *= row.dtype.type(count)
    out -= row.dtype.type(less)


@fused(_importance)
def importance(row: Array, low: float, high: float, count: int, less: float, out: Array) -> None:
    """``count norm(|row|)^2 - less``, ``(n,)``, into ``out``, where ``norm`` is `normalize`."""
    least, most, times, minus = row.dtype.type(low), row.dtype.type(high), row.dtype.type(count), row.dtype.type(less)
    if high > low:
        for i in range(len(row)):
            size = abs(row[i])
            raised = least if size < least else size
            stretched = ((most if raised > most else raised) - least) / (most - least)
            out[i] = stretched * stretched * times - minus
    else:
        out[:] = -minus


def _times_straight(out: Array, row: Array, total: Array, straight: Any) -> int:
    products = row * total
    curved = np.abs(products) >= straight
    out *= np.where(curved, out.dtype.type(1), products)
    out += out.dtype.type(0)
    return int(np.count_nonzero(curved))


@fused(_times_straight)
def times_straight(out: Array, row: Array, total: Array, straight: Any) -> int:
    """Multiply ``out``, ``(n,)``, by the products of two rows whose magnitude is below ``straight``; how many are not."""
    one, zero, curved = out.dtype.type(1), out.dtype.type(0), np.int32(0)
    for i in range(len(out)):
        product = row[i] * total[i]
        bent = abs(product) >= straight
        curved = np.int32(curved + np.int32(bent))
        out[i] = out[i] * (one if bent else product) + zero
    return int(curved)


def _compete(row: Array, strength: Array, low: float, high: float) -> None:
    values = torch.from_numpy(row)
    values.copy_(values.abs().clamp_(low, high).mul_(values.sign()).mul_(torch.from_numpy(strength)))


@fused(_compete)
def compete(row: Array, strength: Array, low: float, high: float) -> None:
    """A task vector's ``row``, ``(n,)``, with its magnitudes clamped, times its ``strength``, in place."""
    least, most, zero, one = row.dtype.type(low), row.dtype.type(high), row.dtype.type(0), row.dtype.type(1)
    for i in range(len(row)):
        size = abs(row[i])
        raised = least if size < least else size
        sign = (one if row[i] > zero else zero) - (one if row[i] < zero else zero)
        row[i] = (most if raised > most else raised) * sign * strength[i]


def times_tanh(out: Tensor, row: Tensor, total: Tensor) -> Tensor:
    """``out`` times the hyperbolic tangent of two rows' product, ``(n,)``, in place; no 0 is -0.

    Near 0 the tangent is the identity to the last bit, and not computed.
    """
    numbers, left, right = out.numpy(), row.numpy(), total.numpy()
    straight = numbers.dtype.type(1e-8 if row.dtype == torch.float64 else 1e-4)
    if times_straight(numbers, left, right, straight):
        products = left * right
        curved = np.flatnonzero(np.abs(products) >= straight)
        numbers[curved] = numbers[curved] * torch.from_numpy(products[curved]).tanh_().numpy() + numbers.dtype.type(0)
    return out


def score(
    rows: Tensor, low: Sequence[float], high: Sequence[float], agreement: Agreement, out: Tensor | None = None
) -> Tensor:
    """How much each task vector is to count in each coordinate, ``(K, n)``; below 0 where it disagrees. None is -0.

    Args:
        rows: the task vectors, ``(K, n)``.
        low: of each row, the magnitude below which all count the same.
        high: and that above which they do.
        agreement: see `PCB`.
        out: where to, ``(K, n)``.
    """
    count = len(rows)
    scores = torch.empty_like(rows) if out is None else out
    if agreement == "sum":
        total = weighted_sum(rows, [1.0] * count)
    else:
        sizes = rows.abs()
        for row, *limits in zip(sizes.numpy(), low, high, strict=True):
            normalize(row, *limits)
        signed = sizes.mul_(rows.sign())
        total = _in_pairs(signed) if agreement == "pairs" else weighted_sum(signed, [1.0] * count)
    # All of one row, then of the next: a row stays in the cache.
    for k, (row, found, least, most) in enumerate(zip(rows, scores, low, high, strict=True)):
        importance(row.numpy(), least, most, count, max(count - LARGEST_EXPONENT, 0), found.numpy())
        found.exp_()
        if agreement == "pairs":
            found.mul_(total[k]).add_(0.0)
        else:
            times_tanh(found, row, total)
    return scores


def _in_pairs(signed: Tensor) -> Tensor:
    agreeing = torch.zeros_like(signed)
    for i in range(len(signed)):
        for j in range(i + 1):
            both = times_tanh(torch.ones_like(signed[i]), signed[i], signed[j])
            agreeing[i] += both
            if j < i:
                agreeing[j] += both
    return agreeing


@merge_rules.add("pcb")
@dataclass(frozen=True)
class PCB(Rule):
    """Task vectors compete for each coordinate, by how much it matters to each and how well they agree on it.

    Of the ``d`` coordinates of ``K`` task vectors:

    1. magnitudes ``A_i = |tau_i|`` are clamped to their order statistics at ``outliers`` and ``1 - outliers``;
    2. the importance within a task is ``exp(K norm(A_i)^2)``, with ``norm`` stretching a task's values to [0, 1];
    3. the agreement between tasks is ``tanh(tau_i sum_j tau_j)``;
    4. of their product ``b_i`` the largest fraction ``ratio`` is stretched to (0, 1], and the rest is 0, which gives
       ``S_i``: without ties ``d - int(d (1 - ratio)) - 1`` coordinates of each task are left;
    5. ``theta_0 + scale sum_i S_i w_i sign(tau_i) A_i / max(sum_i S_i, 1e-12)``.

    Du et al., *Parameter competition balancing for model merging*, NeurIPS 2024; ranks are counted as in the authors' code,
    whose scripts for vision and for language have this ``outliers``. Where a task's values are all equal, theirs divides
    0 by 0; here nothing is taken from that task. With more than 60 tasks scores are scaled down to stay finite, which
    changes nothing but rounding. Ranks count every name, so tied weights that are merged in memory belong there once.

    Args:
        outliers: the fraction of smallest and of largest magnitudes that are clamped, from 0 to less than 1/2; 1e-4 in the
            authors' stand-alone function.
        ratio: what may be left of a task vector, from 0 to 1; 0.05 in the script for vision, up to 0.2 in that for language.
        scale: of the merged task vector; 1.2 in the script for vision, searched from 0.8 to 2.2 in that for T5.
        weight: ``w``, of each model; what the paper's search with validation data looks for.
        agreement: ``"sum"``, as above and in the authors' scripts for language; ``"normalized_sum"``,
            ``tanh(tau_i sum_j N_j)`` with ``N_j = sign(tau_j) norm(A_j)``, as in the one for vision; ``"pairs"``,
            ``sum_j tanh(N_i N_j)``, as in that with a search.
        scope: whether values compete in the whole ``"model"``, as in the paper, or in each ``"tensor"``.
    """

    outliers: float = 0.01
    ratio: float = 0.1
    scale: float = 1.0
    weight: PerModel = 1.0
    agreement: Agreement = "sum"
    scope: Literal["model", "tensor"] = "model"

    def __post_init__(self) -> None:
        if not 0 <= self.outliers < 0.5:
            raise InputError(f"outliers {self.outliers}: expected a number from 0 to less than 0.5")
        if not 0 <= self.ratio <= 1:
            raise InputError(f"ratio {self.ratio}: expected a number from 0 to 1")
        for setting, value, known in (
            ("agreement", self.agreement, ("sum", "normalized_sum", "pairs")),
            ("scope", self.scope, ("model", "tensor")),
        ):
            if value not in known:
                raise InputError(f"{setting} {value!r}: expected one of {', '.join(map(repr, known))}")

    def statistics(self, count: int) -> Sequence[Cuts]:
        def each(per_row: Callable[[int], list[int]]) -> Callable[[int], list[list[int]]]:
            return lambda n: [per_row(n)] * count

        def clamped(n: int) -> list[int]:
            return [n - _rank(n, self.outliers), n - _rank(n, 1 - self.outliers, -1)]

        def kept(n: int) -> list[int]:
            return [n - _rank(n, 1 - self.ratio), 1]

        # A cut below which there is nothing has no value: where a rank is the lowest, it is the largest negative that is.
        return (
            Cuts("pcb sizes", each(clamped), scope=self.scope),
            Cuts("pcb smallest", each(lambda n: [int(n in clamped(n))]), _negative(magnitudes), self.scope, True),
            Cuts("pcb scores", each(kept), self._scores, self.scope, True),
            Cuts("pcb lowest", each(lambda n: [int(n in kept(n))]), _negative(self._scores), self.scope, True),
        )

    def _scores(self, chunk: Chunk) -> Tensor:
        return score(chunk.rows, *_limits(chunk, "pcb sizes", "pcb smallest"), self.agreement, chunk.scratch)

    def merge(self, chunk: Chunk) -> Tensor:
        strength = self._scores(chunk)
        weak, strong = _limits(chunk, "pcb scores", "pcb lowest")
        low, high = _limits(chunk, "pcb sizes", "pcb smallest")
        total = torch.zeros_like(strength[0])

        def competing() -> Iterator[Tensor]:
            for k, (row, scores) in enumerate(zip(chunk.rows, strength, strict=True)):
                normalize(scores.numpy(), weak[k], strong[k])
                total.add_(scores)
                compete(row.numpy(), scores.numpy(), low[k], high[k])
                yield row

        merged = weighted_sum(competing(), per_model(self.weight, chunk.rows.shape[0], "weight"))
        return chunk.plus_base(merged.div_(total.clamp_(min=1e-12)), self.scale)


def _rank(n: int, fraction: float, more: int = 0) -> int:
    """The index in ascending order at a fraction of ``n`` values, rounded as the authors do."""
    return min(max(int(n * fraction + more), 0), max(n - 1, 0))


def _negative(values: Callable[[Chunk], Tensor]) -> Callable[[Chunk], Tensor]:
    return lambda chunk: 0.0 - values(chunk)


def _limits(chunk: Chunk, found: str, lowest: str) -> tuple[list[float], list[float]]:
    """The smaller and the larger value that a statistic found for each row."""
    lows, highs = [], []
    for (low, high), (least,) in zip(cuts_of(chunk, found), cuts_of(chunk, lowest), strict=True):
        smallest, low_at, high_at = -least.value, low.value, high.value
        if not math.isfinite(smallest):
            smallest = 0.0  # one value alone is nothing
        highs.append(high_at if math.isfinite(high_at) else smallest)
        lows.append(min(low_at if math.isfinite(low_at) else smallest, highs[-1]))
    return lows, highs
