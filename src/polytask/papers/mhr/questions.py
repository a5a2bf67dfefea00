"""Many tasks out of three sets of glyphs: which of four classes is it, for images of one set that are seen in one way.

The sets are MNIST, USPS and notMNIST at 16 x 16 pixels. A way of seeing turns images by a multiple of 90 degrees, and may
mirror them. Of each of the 24 pairs of a set and a way there are two tasks, of four classes each, at random and none in
common: 48 tasks. Whichever tasks are held out, none of their classes was seen in their way and set.

Classes have one number in all tasks, digits 0 to 9 and letters A to J 10 to 19, and a task's answers are its four classes:
as a language model ranks a question's answers, and no task has weights to read answers out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.data.examples import Examples
from polytask.papers._experts import Split
from polytask.papers._experts.glyphs import FILES, load

__all__ = ["CLASSES", "FILES", "PIXELS", "Questions", "glyphs", "questions"]

PIXELS, CLASSES, ANSWERS, WAYS = 16, 20, 4, 8
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
        seed: of the classes, of which tasks are of which kind, and of the images that are taken.
        sizes: at most how many images of a task each split has.
    """
    generator = torch.Generator().manual_seed(seed)
    tasks: list[_Asked] = []
    for name in SOURCES:
        for way in range(WAYS):
            classes = torch.randperm(10, generator=generator) + 10 * (name == "notmnist")
            tasks += [(name, way, classes[:ANSWERS]), (name, way, classes[ANSWERS : 2 * ANSWERS])]
    order = torch.randperm(len(tasks), generator=generator).tolist()
    made, start = {}, 0
    for kind, count in COUNTS.items():
        chosen = [tasks[i] for i in order[start : start + count]]
        made[kind] = _questions(sets, chosen, sizes, generator)
        start += count
    return made


def seen(images: Tensor, way: int) -> Tensor:
    """Images ``(N, 1, H, H)`` in ``[0, 1]`` in one of 8 ways: 0 is as they are."""
    if way & 4:
        images = images.flip(-1)
    return images.rot90(way & 3, (-2, -1))


_Asked: TypeAlias = tuple[str, int, Tensor]
"""The set of a task, the way of seeing, and the classes ``(4,)``."""


def _questions(
    sets: Mapping[str, Split], chosen: Sequence[_Asked], sizes: Mapping[str, int], generator: torch.Generator
) -> Questions:
    parts = {}
    for part, size in sizes.items():
        images, tasks, answers = [], [], []
        for number, (name, way, four) in enumerate(chosen):
            all_images, targets = getattr(sets[name], part)[:]
            matches = targets["class"][:, None] == four
            rows = matches.any(1).nonzero().flatten()
            rows = rows[torch.randperm(len(rows), generator=generator)[:size]]
            images.append(seen(all_images[rows], way))
            tasks.append(torch.full((len(rows),), number))
            answers.append(matches[rows].long().argmax(1))
        parts[part] = Examples({"images": torch.cat(images), "task": torch.cat(tasks)}, {"answer": torch.cat(answers)})
    names = tuple(f"{name} {way}: {' '.join(map(str, four.tolist()))}" for name, way, four in chosen)
    return Questions(names, torch.stack([four for _, _, four in chosen]), **parts)


def _small(split: Split, name: str, first: int) -> Split:
    parts = {}
    for part in ("train", "validation", "test"):
        images, targets = getattr(split, part)[:]
        images = F.interpolate(images, (PIXELS, PIXELS), mode="bilinear", antialias=True)
        parts[part] = Examples(images, {"class": targets[name] + first})
    return Split(CLASSES, **parts)
