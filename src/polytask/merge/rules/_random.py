"""Random masks that are a function of the place of each entry."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def keep(density: float | Tensor, count: int, seed: int, name: str, model: int, start: int) -> Tensor:
    """``(count,)`` booleans that are true with probability ``density``, for entries ``start`` on of a tensor of a model.

    32 bits are drawn for each entry of the tensor, whichever pieces it is asked for in. The density is one number for all
    entries, or one for each, ``(count,)``.
    """
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype=np.uint32)
    generator = np.random.PCG64DXSM(np.random.SeedSequence([seed, model, *words.tolist()]))
    generator.advance(start // 2)
    first = start % 2
    drawn = generator.random_raw((first + count + 1) // 2).view(np.uint32)[first : first + count]
    if isinstance(density, Tensor):
        below = (density.double() * 2**32).round_().clamp_(max=2**32 - 1)
        return torch.from_numpy(drawn < below.numpy().astype(np.uint32))
    return torch.from_numpy(drawn < np.uint32(min(round(density * 2**32), 2**32 - 1)))
