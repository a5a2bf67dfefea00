"""Experts to merge: encoders that were fine-tuned apart from one base, each beside a head that stayed frozen.

What the papers on merging have in common: `glyphs` and `text` make experts of real tasks, once, and keep them in the user's
cache folder; `Experts` measures any weights on their tasks.
"""

from polytask.papers._experts.experts import Experts, Part, Split, train
from polytask.papers._experts.weights import added, delta

__all__ = ["Experts", "Part", "Split", "added", "delta", "train"]
