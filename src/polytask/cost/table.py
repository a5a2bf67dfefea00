"""Latency on other devices: a small file of what each block takes there, added up over a configuration."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from polytask.errors import InputError, suggest
from polytask.files import write_text


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds by block, as measured on some device; a network takes the sum of its blocks.

    The sum leaves out what blocks overlap and what lies between them: it ranks configurations, and is within a constant of
    what they take (Cai et al., *ProxylessNAS*, ICLR 2019, Appendix B).

    Args:
        ms: finite and not negative, by the block's name.

    >>> table = LatencyTable({"conv 32": 0.5, "conv 64": 1.25})
    >>> table(["conv 32", "conv 64", "conv 64"])
    3.0
    """

    ms: Mapping[str, float]

    def __post_init__(self) -> None:
        for block, value in self.ms.items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"latency of {block!r}: {value}, expected finite milliseconds, 0 or more")

    def __call__(self, blocks: Iterable[str]) -> float:
        """The milliseconds of a configuration: the sum over its blocks, as often as they occur."""
        return math.fsum(self[block] for block in blocks)

    def __getitem__(self, block: str) -> float:
        if block not in self.ms:
            raise InputError(f"no latency of a block {block!r}: {suggest(block, self.ms)}")
        return self.ms[block]

    @classmethod
    def read(cls, path: Path | str) -> LatencyTable:
        """The table in a CSV file whose first line is ``block,ms``.

        Raises `InputError`, naming file and line, for a file that cannot be read, another header, a line that is no block
        and number, or a block that occurs twice.
        """
        path = Path(path)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        if not rows or rows[0] != ["block", "ms"]:
            raise InputError(f"{path}: line 1: {','.join(rows[0]) if rows else 'nothing'!r}, expected block,ms")
        found: dict[str, float] = {}
        for line, row in enumerate(rows[1:], 2):
            try:
                block, value = row[0], float(row[1])
                if len(row) != 2 or block in found or not (math.isfinite(value) and value >= 0):
                    raise ValueError
            except (IndexError, ValueError):
                raise InputError(
                    f"{path}: line {line}: {','.join(row)!r}, expected a block that is new, and finite milliseconds"
                ) from None
            found[block] = value
        return cls(found)

    def write(self, path: Path | str) -> None:
        """Write the table to ``path`` as `read` takes it, whole or not at all."""
        for block in self.ms:
            if any(character in block for character in ',"\r\n'):
                raise InputError(f"block {block!r}: expected a name without commas, quotes and line breaks")
        write_text(path, "".join(["block,ms\n", *(f"{block},{value!r}\n" for block, value in self.ms.items())]))
