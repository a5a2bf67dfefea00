"""A small stream of visits between named people and places, as files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

HEADER = "source,target,timestamp,weight,note"
JODIE = "user_id,item_id,timestamp,state_label,comma_separated_list_of_features"


def rows(start: int, stop: int) -> list[str]:
    """Events ``start`` to ``stop`` of a stream that is easy to predict, ten seconds apart."""
    return [f"person {k % 6},place {(k % 6) // 2 + k % 2},{10 * k},{k % 3}.5,seen" for k in range(start, stop)]


def write(path: Path, lines: Iterable[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def jodie(start: int, stop: int) -> list[str]:
    """The same without names, as JODIE's data sets have it."""
    return [f"{k % 6},{(k % 6) // 2 + k % 2},{10 * k},0,{k % 3}.5,1" for k in range(start, stop)]
