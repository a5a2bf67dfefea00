"""The sub-networks of Once-for-All's MobileNetV3: what one is, the space of them, and what one costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from polytask.errors import InputError
from polytask.shrink.search import Space
from polytask.shrink.search.space import Configuration

KERNELS, EXPANSIONS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
STAGES, BLOCKS = 5, 4
WIDTHS = (16, 16, 24, 40, 80, 112, 160, 960, 1280)
"""Of the first convolution, the first block, the stages, and the two layers behind them, at a multiplier of 1."""
STRIDES = (2, 2, 2, 1, 2)
SQUEEZED = (False, True, False, True, True)
"""Which stages squeeze and excite."""
HARD_SWISH = (False, False, True, True, True)
"""Which stages have the hard swish; the others have ReLU."""


@dataclass(frozen=True)
class Architecture:
    """A sub-network: the kernel and the expansion of each block that is used.

    Args:
        kernels: for each of five stages the kernels of its 2 to 4 blocks, 3, 5 or 7.
        expansions: likewise by how much a block is wider inside, 3, 4 or 6.
        width: the multiplier of all widths, 1.0 or 1.2 in the published super-networks.

    >>> Architecture.parse("73375333737773753333", "36636366664346433644", "32232").cost()
    (4536768, 244945104)
    """

    kernels: tuple[tuple[int, ...], ...]
    expansions: tuple[tuple[int, ...], ...]
    width: float = 1.0

    def __post_init__(self) -> None:
        depths = [len(stage) for stage in self.kernels]
        if len(depths) != STAGES or depths != [len(stage) for stage in self.expansions] or not set(depths) <= set(DEPTHS):
            raise InputError(f"{self}: expected {STAGES} stages of {DEPTHS} kernels, and as many expansions")
        for known, found in ((KERNELS, self.kernels), (EXPANSIONS, self.expansions)):
            if odd := {value for stage in found for value in stage} - set(known):
                raise InputError(f"{self}: {sorted(odd)[0]}, expected some of {known}")

    @classmethod
    def parse(cls, ks: str, e: str, d: str, width: float = 1.0) -> Architecture:
        """Of strings of digits: 20 kernels and 20 expansions, four for each stage, and five depths."""
        if (len(ks), len(e), len(d)) != (STAGES * BLOCKS, STAGES * BLOCKS, STAGES) or not (ks + e + d).isdecimal():
            raise InputError(f"architecture {ks!r}, {e!r}, {d!r}: expected 20, 20 and 5 digits")

        def stages(digits: str) -> tuple[tuple[int, ...], ...]:
            return tuple(
                tuple(int(digit) for digit in digits[BLOCKS * stage : BLOCKS * stage + int(depth)])
                for stage, depth in enumerate(d)
            )

        return cls(stages(ks), stages(e), width)

    @classmethod
    def of(cls, configuration: Mapping[str, Any], width: float = 1.0) -> Architecture:
        """Of a configuration of `SPACE`."""

        def stages(gene: str) -> tuple[tuple[int, ...], ...]:
            return tuple(
                tuple(configuration[f"{gene}{stage}.{block}"] for block in range(configuration[f"d{stage}"]))
                for stage in range(STAGES)
            )

        return cls(stages("k"), stages("e"), width)

    @property
    def configuration(self) -> Configuration:
        """The configuration of `SPACE`; unused genes are absent."""
        found: Configuration = {}
        for stage, (kernels, expansions) in enumerate(zip(self.kernels, self.expansions, strict=True)):
            found[f"d{stage}"] = len(kernels)
            for block, (kernel, expansion) in enumerate(zip(kernels, expansions, strict=True)):
                found |= {f"k{stage}.{block}": kernel, f"e{stage}.{block}": expansion}
        return found

    def cost(self, size: int = 224) -> tuple[int, int]:
        """Parameters, and the multiply-accumulates of convolutions and linear layers for one image of ``size x size``."""
        widths = [rounded(width * self.width) for width in WIDTHS]
        first, before, *outputs, wide, last = widths
        side = halved(size)
        parts = [_convolution(3, first, 3, side), _block(first, before, first, 3, side, side, False, False)]
        for stage, after in enumerate(outputs):
            for block, (kernel, expansion) in enumerate(zip(self.kernels[stage], self.expansions[stage], strict=True)):
                inner = side
                side = halved(side) if block == 0 and STRIDES[stage] == 2 else side
                mid = rounded(before * expansion)
                parts.append(_block(before, after, mid, kernel, inner, side, SQUEEZED[stage], True))
                before = after
        parts += [_convolution(before, wide, 1, side), (wide * last, wide * last), (1000 * (last + 1), 1000 * last)]
        return sum(part[0] for part in parts), sum(part[1] for part in parts)


def rounded(width: float) -> int:
    """To the nearest multiple of 8, the next one where that would lose more than a tenth."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest


def halved(side: int) -> int:
    """The side of an image behind a stride of 2."""
    return (side + 1) // 2


@cache
def _convolution(before: int, after: int, kernel: int, side: int) -> tuple[int, int]:
    """With its batch norm."""
    weights = before * after * kernel**2
    return weights + 2 * after, weights * side**2


@cache
def _block(
    before: int, after: int, mid: int, kernel: int, inner: int, side: int, squeezed: bool, expands: bool
) -> tuple[int, int]:
    depthwise = mid * kernel**2
    parts = [(depthwise + 2 * mid, depthwise * side**2), _convolution(mid, after, 1, side)]
    if expands:
        parts.append(_convolution(before, mid, 1, inner))
    if squeezed:
        narrow = rounded(mid / 4)
        parts.append((2 * mid * narrow + narrow + mid, 2 * mid * narrow))
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def _space() -> Space:
    genes: dict[str, tuple[int, ...]] = {f"d{stage}": DEPTHS for stage in range(STAGES)}
    when = {}
    for gene, options in (("k", KERNELS), ("e", EXPANSIONS)):
        for stage in range(STAGES):
            for block in range(BLOCKS):
                genes[f"{gene}{stage}.{block}"] = options
                if block >= min(DEPTHS):
                    when[f"{gene}{stage}.{block}"] = {f"d{stage}": [depth for depth in DEPTHS if depth > block]}
    return Space(genes, when, implied=[f"d{stage}" for stage in range(STAGES)])


SPACE = _space()
"""All sub-networks: a depth for each stage, a kernel and an expansion for each of 20 blocks; 120 features."""
