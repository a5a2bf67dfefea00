"""The claims on masks, on experts for four tasks of text: the last layers of a sentence encoder."""

from __future__ import annotations

from pathlib import Path

from polytask.claim import Measurements
from polytask.papers._experts.text import FILES, text_experts
from polytask.papers.tall_masks.comparison import masked_models, tall_masks

__all__ = ["FILES", "measure_text"]


def measure_text(seed: int, data: Path) -> Measurements:
    """What `masked_models` finds on the experts of a seed, by names that begin with ``text``."""
    experts = text_experts(data, seed)
    return {f"text {name}": value for name, value in masked_models(experts, tall_masks(experts)).items()}
