"""A paper: a published system, its place in the catalogue, its claims, and its models at the size that it ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polytask.claim import Claim, Measurements


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue.

    Args:
        slug: the name on the command line, and of the module in `polytask.papers`.
        title: the paper's title.
        family: its field.
        verbs: what it does with many tasks: share, balance, merge, shrink, route, scale, measure.
        reference: where to find it; empty while the paper is not written.
    """

    slug: str
    title: str
    family: str
    verbs: tuple[str, ...]
    reference: str = ""

    @property
    def done(self) -> bool:
        """Whether polytask has it; only a written paper states its reference."""
        return bool(self.reference)


@dataclass(frozen=True)
class Scale:
    """A model at the size that the paper ran.

    Args:
        name: what it is.
        build: builds it; call it under ``torch.device("meta")`` to count without allocating.
        parameters: how many parameters it has.
        source: where that number comes from: the paper's table, or a count by the paper's formula.
        tolerance: the relative difference that the tests allow.
    """

    name: str
    build: Callable[[], Any]
    parameters: int
    source: str
    tolerance: float = 0.0


@dataclass(frozen=True)
class Paper(Entry):
    """A written paper; its module holds it as ``PAPER``, with the fields of `Entry` as literals.

    Args:
        claims: what it claims, as programs.
        scales: its models at paper scale.
        plot: draws the measurements, ``{seed: {name: number}}``, where a plot says more than the claims' intervals.
    """

    claims: tuple[Claim, ...] = ()
    scales: tuple[Scale, ...] = ()
    plot: Callable[[Mapping[int, Measurements]], Figure] | None = None
