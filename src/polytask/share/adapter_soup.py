"""AdapterSoup: a new task's adapter begins as the mean of others'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from polytask.errors import InputError, suggest
from polytask.share.adapter import Adapter
from polytask.share.insertion import Inserted


@torch.no_grad()
def soup(inserted: Inserted, task: str, of: Sequence[str] | None = None) -> Inserted:
    """The insertion of adapters with a further task, whose adapter has the mean weights of those of other tasks.

    Chronopoulou et al., *AdapterSoup: weight averaging to improve generalization of pretrained language models*, Findings of
    EACL 2023, who use it as it is; trained on a few examples it is a start that knows something. Weights are averaged, not
    outputs, which `ScaLearn` would add up.

    Args:
        inserted: an insertion of `Adapter`, as it was trained.
        task: the new one.
        of: whose adapters, such as the five tasks nearest to it; all by default.
    """
    if not isinstance(inserted.method, Adapter):
        raise InputError(f"an insertion of {inserted.method.name}, expected one of adapter")
    names = inserted.tasks if of is None else tuple(of)
    for name in names:
        if name not in inserted.tasks:
            raise InputError(f"unknown task {name!r}: {suggest(name, inserted.tasks)}")
    if not names:
        raise InputError("a soup of no adapters, expected at least one")
    further = inserted.add_tasks([task])
    for part in further.parts.values():
        adapters: Any = part
        for name, parameter in adapters.of(task).named_parameters():
            parameter.copy_(torch.stack([adapters.of(other).get_parameter(name) for other in names]).mean(0))
    return further
