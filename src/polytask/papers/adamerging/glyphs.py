"""The claims on six tasks of handwritten digits and printed letters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from polytask.claim import Measurements
from polytask.data.examples import Examples
from polytask.papers._experts import Experts
from polytask.papers._experts.glyphs import FILES, glyph_experts
from polytask.papers.adamerging import protocol

__all__ = ["FILES", "measure"]

NOISE = 0.3
"""The standard deviation of the noise, of pixels in [0, 1]."""


def measure(seed: int, data: Path) -> Measurements:
    """What `polytask.papers.adamerging.protocol.compare` measures, and ``"..., noise"``: accuracies on noisy test images.

    Adaptation is to the noisy images themselves; scales are those of clean validation images.
    """
    experts = glyph_experts(data, seed)
    measured = protocol.compare(experts, seed)
    noisy, vectors = with_noise(experts, seed), protocol.moved(experts.vectors)
    models = {
        "arithmetic": protocol.arithmetic(experts.base, vectors, protocol.START),
        "tuned": protocol.arithmetic(experts.base, vectors, measured["scale"]),
        "layer-wise": experts.base | protocol.adapt(noisy, vectors, "tensor", seed).merged(),
    }
    return measured | {f"{name}, noise": protocol.accuracy(noisy, w, experts.tasks) for name, w in models.items()}


def with_noise(experts: Experts, seed: int) -> Experts:
    """The same experts; the test images have Gaussian noise and are cut to [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    data = {}
    for task, split in experts.data.items():
        images, labels = experts.part(task, "test")
        assert isinstance(images, torch.Tensor)
        noise = NOISE * torch.randn(images.shape, generator=generator)
        data[task] = replace(split, test=Examples((images + noise).clamp(0, 1), {task: labels}))
    return replace(experts, data=data)
