"""Task gradients of several processes made one: for each layer, whatever is smaller travels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from polytask.balance.engine.parts import Dense, Part, Rows


def join(parts: Sequence[Part | None], shared: Sequence[Tensor], count: int, processes: ProcessGroup) -> list[Part | None]:
    """The mean over processes of the gradients of ``count`` tasks on each of the ``shared`` parameters.

    Inner products across processes count, so sums of each process's own would not do. Either all processes get what each
    layer got and what comes back to it, or the task gradients are summed.
    """
    if not shared:
        return []
    size = dist.get_world_size(processes)
    codes = torch.tensor([_code(part) for part in parts], device=shared[0].device)
    every = [torch.empty_like(codes) for _ in range(size)]
    dist.all_gather(every, codes, group=processes)
    table = torch.stack(every).tolist()
    joined: list[Part | None] = []
    for i, (part, parameter) in enumerate(zip(parts, shared, strict=True)):
        forms = [row[i] for row in table]
        if not any(forms):
            joined.append(None)
            continue
        rows = [form for form in forms if form > 0]
        flips = {form % 2 for form in rows}
        if -1 not in forms and len(flips) == 1:
            flip = flips.pop() == 1
            out = parameter.shape[1] if flip else parameter.shape[0]
            width = parameter.numel() // out
            longest = max(rows) // 2
            if size * longest * (width + count * out) < 2 * count * width * out:
                joined.append(_all_rows(part, parameter, (longest, width, out), flip, count, processes))
                continue
        joined.append(_sum(part, parameter, count, processes))
    return joined


def _code(part: Part | None) -> int:
    """0 for no gradients, -1 for whole ones, ``2 T + flip`` for ``T`` rows."""
    if part is None:
        return 0
    return 2 * len(part.x) + part.flip if isinstance(part, Rows) else -1


def _all_rows(
    part: Part | None, parameter: Tensor, shape: tuple[int, int, int], flip: bool, count: int, processes: ProcessGroup
) -> Part:
    longest, width, out = shape
    size = dist.get_world_size(processes)
    kind = torch.promote_types(parameter.dtype, torch.float32)
    # Shorter batches are filled up with zeros, which add nothing.
    x = torch.zeros(longest, width, dtype=kind, device=parameter.device)
    delta = torch.zeros(longest, count, out, dtype=kind, device=parameter.device)
    if isinstance(part, Rows):
        x[: len(part.x)] = part.x
        delta[: len(part.x), list(part.tasks)] = part.delta.transpose(0, 1).to(kind)
    both = torch.cat([x.flatten(), delta.flatten()])
    every = [torch.empty_like(both) for _ in range(size)]
    dist.all_gather(every, both, group=processes)
    x = torch.cat([one[: x.numel()].view(x.shape) for one in every])
    delta = torch.cat([one[x.numel() // size :].view(delta.shape) for one in every])
    return Rows(x, delta.transpose(0, 1).contiguous() / size, tuple(range(count)), flip)


def _sum(part: Part | None, parameter: Tensor, count: int, processes: ProcessGroup) -> Part:
    kind = torch.promote_types(parameter.dtype, torch.float32)
    grads = torch.zeros(count, prod(parameter.shape), dtype=kind, device=parameter.device)
    if part is not None:
        grads[list(part.tasks)] = part.dense().to(kind)
    dist.all_reduce(grads, group=processes)
    return Dense(grads / dist.get_world_size(processes), tuple(range(count)))
