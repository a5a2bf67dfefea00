"""Many tasks out of three sets of glyphs: which of four classes is it, for images of one set that are seen in one way.

The sets are MNIST, USPS and notMNIST at 16 x 16 pixels. A way of seeing turns images by a multiple of 90 degrees, may mirror
them, and may exchange ink and paper: 48 pairs of a set and a way, each for one task, which has four classes at random. A
task that is held out thus shows a pair that no other task has, while others have its set, and others its way.

Classes have one number in all tasks, digits 0 to 9 and letters A to J 10 to 19, and a task's answers are its four classes:
as a language model ranks a question's answers, and no task has weights to read answers out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.data.examples import Examples
from polytask.papers._experts import Split
from polytask.papers._experts.glyphs import FILES, load

__all__ = ["CLASSES", "FILES", "PIXELS", "Questions", "glyphs", "questions"]

PIXELS, CLASSES, ANSWERS = 16, 20, 4
SOURCES = ("mnist", "usps", "notmnist")
COUNTS = {"train": 30, "validation": 6, "test": 12}
"""Tasks to train on, to choose rates of transfer by, and to report."""


@dataclass(frozen=True)
class Questions:
    """Tasks of one kind.

    Attributes:
        names: of the ``T`` tasks.
        classes: ``(T, 4)``, each task's answers.
        train, validation, test: examples; the inputs are ``images (N, 1, 16, 16)`` and ``task (N,)``, a position in
            ``names``, and the target ``answer (N,)`` is a position in the task's classes.
    """

    names: tuple[str, ...]
    classes: Tensor
    train: Examples
    validation: Examples
    test: Examples


def glyphs(folder: Path, seed: int) -> dict[str, Split]:
    """The three sets at 16 x 16, split anew for each seed, with the classes' numbers as targets ``"class"``."""
    loaded = load(folder, seed)
    return {name: _small(loaded[name], name, 10 * (name == "notmnist")) for name in SOURCES}


def questions(sets: Mapping[str, Split], seed: int, sizes: Mapping[str, int]) -> dict[str, Questions]:
    """The tasks of a seed, of each kind of `COUNTS`.

    Args:
        sets: what `glyphs` gives.
        seed: of the pairs of a set and a way, of the classes, and of the images that are taken.
        sizes: at most how many images of a task each split has.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = [(name, way) for name in SOURCES for way in range(16)]
    order = torch.randperm(len(pairs), generator=generator).tolist()
    made, start = {}, 0
    for kind, count in COUNTS.items():
        chosen = [pairs[i] for i in order[start : start + count]]
        made[kind] = _questions(sets, chosen, sizes, generator)
        start += count
    return made


def seen(images: Tensor, way: int) -> Tensor:
    """Images ``(N, 1, H, H)`` in ``[0, 1]`` in one of 16 ways: 0 is as they are."""
    if way & 8:
        images = 1 - images
    if way & 4:
        images = images.flip(-1)
    return images.rot90(way & 3, (-2, -1))


def _questions(
    sets: Mapping[str, Split], chosen: Sequence[tuple[str, int]], sizes: Mapping[str, int], generator: torch.Generator
) -> Questions:
    classes = [torch.randperm(10, generator=generator)[:ANSWERS] + 10 * (name == "notmnist") for name, _ in chosen]
    parts = {}
    for part, size in sizes.items():
        images, tasks, answers = [], [], []
        for number, ((name, way), four) in enumerate(zip(chosen, classes, strict=True)):
            all_images, targets = getattr(sets[name], part)[:]
            matches = targets["class"][:, None] == four
            rows = matches.any(1).nonzero().flatten()
            rows = rows[torch.randperm(len(rows), generator=generator)[:size]]
            images.append(seen(all_images[rows], way))
            tasks.append(torch.full((len(rows),), number))
            answers.append(matches[rows].long().argmax(1))
        parts[part] = Examples({"images": torch.cat(images), "task": torch.cat(tasks)}, {"answer": torch.cat(answers)})
    return Questions(tuple(f"{name} {way}" for name, way in chosen), torch.stack(classes), **parts)


def _small(split: Split, name: str, first: int) -> Split:
    parts = {}
    for part in ("train", "validation", "test"):
        images, targets = getattr(split, part)[:]
        images = F.interpolate(images, (PIXELS, PIXELS), mode="bilinear", antialias=True)
        parts[part] = Examples(images, {"class": targets[name] + first})
    return Split(CLASSES, **parts)
