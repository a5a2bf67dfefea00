"""Polytropon: each task mixes the factors of low-rank skills that all tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polytask.share.insertion import insertables
from polytask.share.mhr import MHR


@insertables.add("polytropon")
@dataclass(frozen=True)
class Polytropon(MHR):
    """Multi-head adapter routing with one head: a task has one weight for each skill of a layer.

    Ponti et al., *Combining parameter-efficient modules for task-level generalisation*, EACL 2023. There the weights are
    those of a relaxed Bernoulli variable while training (``temperature=1.0``); Caccia et al. leave that out, as the default
    here does.
    """

    name: ClassVar[str] = "polytropon"
    heads: int = 1
