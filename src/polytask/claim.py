"""A claim: a statement that a program can check, and the evidence that the program found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from polytask.errors import InputError, suggest
from polytask.statistics import paired_p_value, t_interval

Measurements: TypeAlias = Mapping[str, float]
"""What one seed measured, by name."""

Verdict: TypeAlias = Literal["holds", "contradicted", "undecided"]


@dataclass(frozen=True)
class Evidence:
    """What paired runs over seeds show of a claim.

    Attributes:
        seeds: the seeds, ``n`` of them.
        method, baseline: the two measurements, one for each seed.
        mean: the mean gain, the paired difference signed so that above 0 speaks for the claim.
        low, high: its 95 % interval (Student's t).
        p_value: of the paired t test that the mean gain equals the claim's margin.
        verdict: ``holds`` when the whole interval lies above the margin, ``contradicted`` when all of it lies below,
            else ``undecided``.
    """

    seeds: tuple[int, ...]
    method: tuple[float, ...]
    baseline: tuple[float, ...]
    mean: float
    low: float
    high: float
    p_value: float
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """A statement with a direction, and the run that measures it.

    Args:
        name: a short name, unique in its paper.
        statement: one sentence, true if the claim holds.
        run: ``run(seed, data) -> {name: number}`` runs the method and all baselines on the same data with the same budget;
            ``data`` is the folder of data sets. The same seed must give the same numbers. Claims that share a function
            share its runs.
        method, baseline: the two measurements to compare.
        better: whether a ``"lower"`` or a ``"higher"`` measurement is better.
        margin: the least gain that counts, in the measurement's unit: 0 asks for any gain, above 0 for at least so much;
            below 0 the claim is that the method is worse by less than that.
        claimed: what the source reports, in its own setting.
        comment: what to know when reading the verdict.
        needs: the files that ``run`` reads, relative to ``data``.
        seeds: how many seeds to run by default.

    >>> claim = Claim("faster", "b takes less time than a", lambda seed, data: {"a": 3.0 + seed, "b": 1.0 + seed % 2},
    ...               method="b", baseline="a", better="lower")
    >>> claim.judge({seed: claim.run(seed, Path()) for seed in range(5)}).verdict
    'holds'
    """

    name: str
    statement: str
    run: Callable[[int, Path], Measurements]
    method: str
    baseline: str
    better: Literal["lower", "higher"]
    margin: float = 0.0
    claimed: str = ""
    comment: str = ""
    needs: tuple[str, ...] = ()
    seeds: int = 10

    def missing(self, data: Path | None) -> str | None:
        """Why the claim cannot run with this folder of data sets, or ``None`` when it can."""
        if not self.needs:
            return None
        if data is None:
            return f"needs {', '.join(self.needs)}: set POLYTASK_DATA or pass --data, the folder of data sets"
        absent = [name for name in self.needs if not (data / name).exists()]
        return f"{', '.join(absent)}: not in the data folder {data}" if absent else None

    def judge(self, measurements: Mapping[int, Measurements]) -> Evidence:
        """The evidence in the measurements of at least two seeds, ``{seed: {name: number}}``."""
        if len(measurements) < 2:
            raise InputError(f"claim {self.name!r}: {len(measurements)} seeds, expected at least two for an interval")
        seeds = tuple(sorted(measurements))
        method, baseline = (tuple(self._number(measurements[seed], name, seed) for seed in seeds) for name in self.pair)
        gains = np.subtract(method, baseline) * (1 if self.better == "higher" else -1)
        interval = t_interval(gains)
        verdict: Verdict = "undecided"
        if interval.low > self.margin:
            verdict = "holds"
        elif interval.high < self.margin:
            verdict = "contradicted"
        p_value = paired_p_value(gains - self.margin)
        return Evidence(seeds, method, baseline, interval.mean, interval.low, interval.high, p_value, verdict)

    @property
    def pair(self) -> tuple[str, str]:
        """The names of the two measurements that are compared."""
        return self.method, self.baseline

    def _number(self, measured: Measurements, name: str, seed: int) -> float:
        if name not in measured:
            raise InputError(f"claim {self.name!r}: seed {seed} measured no {name!r}: {suggest(name, measured)}")
        value = float(measured[name])
        if not np.isfinite(value):
            raise InputError(f"claim {self.name!r}: seed {seed} measured {name} = {value}, expected a finite number")
        return value
