"""Customized gate control: shared experts and experts of each task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polytask.share._sharing import sharings
from polytask.share.ple import PLE


@sharings.add("cgc")
@dataclass(frozen=True)
class CGC(PLE):
    """Experts that all tasks share and experts of each task alone, mixed for each task by a gate of its own.

    ``f_k(x) = softmax(W_k x) [E_s(x), E_k(x)]`` with ``E_s`` the shared experts and ``E_k`` those of task ``k``, on the
    encoder's features ``x`` (Tang et al., *Progressive layered extraction*, RecSys 2020, section 4.1). It is `PLE` of one
    level, and `MMoE` where tasks have no experts of their own. Asked for one task, it runs no other's experts.

    Args:
        shared, own, hidden: as for `PLE`.
        levels: 1.
    """

    name: ClassVar[str] = "cgc"
    levels: int = 1
