"""What merging adds to a base, and how much of it is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from polytask.merge import Rule, merge_state_dicts


def delta(rule: Rule, models: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a rule adds to the base: the merged task vector."""
    merged = merge_state_dicts(rule, models, base)
    return {name: merged[name] - theta for name, theta in base.items()}


def added(base: Mapping[str, Tensor], vector: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """``theta_0 + scale * tau``; what the vector lacks is the base's."""
    return {name: theta + scale * vector[name] if name in vector else theta for name, theta in base.items()}
