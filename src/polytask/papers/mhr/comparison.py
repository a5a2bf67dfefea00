"""The claims: skills that are mixed in one way or another, trained on many tasks and carried over to others.

Everyone trains the same steps on the same batches of 30 tasks, with the learning rate of `RATES` that classifies the tasks'
validation images best; routing has its own, 0.1 (3e-2 was worse for all, on a seed that is no claim's). What was trained
then learns each of 18 other tasks from `SHOTS` images, with the rate of three that is best on six of these tasks; the other
twelve are reported, and nothing is selected on them. A rank is 1 and a scaling too; layers are 256-256-128-64.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.balance import gradient_cosines
from polytask.claim import Measurements
from polytask.papers.mhr.network import Answering, adapted, base
from polytask.papers.mhr.questions import FILES, Questions, glyphs, questions
from polytask.papers.mhr.transfer import NEW, transfer
from polytask.share import MHR, Inserted, LoRA, Polytropon, averaged
from polytask.training import fit

__all__ = ["FILES", "METHODS", "measure"]

METHODS = {
    "lora": MHR(skills=1, heads=1),
    "lora-big": MHR(skills=1, heads=1, rank=8, alpha=8),
    "poly": Polytropon(skills=8),
    "mhr": MHR(skills=8, heads=16),
}
"""One skill is a LoRA that all tasks share, whatever the routing; at rank 8 it has as many numbers as eight skills."""

SIZES = {"train": 600, "validation": 100, "test": 300}
STEPS, BATCH = 300, 256
RATES = (3e-3, 1e-2)
LOGITS = 0.1

SHOTS = 16
TRANSFER_STEPS = 60
TRANSFER_RATES = (1e-3, 3e-3, 1e-2)
ROUTING_RATES = (0.1, 0.3, 1.0)

LOOKS = 4
"""How often in training the tasks' gradients are compared, each time of the same `LOOK` images of each task."""
LOOK = 20


@dataclass
class Snapshots:
    """Keeps what a network is at some steps of a run (`polytask.training.history.Listener`)."""

    network: Answering
    kept: dict[int, Answering] = field(default_factory=dict)

    def step(self, step: int, losses: dict[str, float]) -> None:
        if step % (STEPS // LOOKS) == 0:
            self.kept[step] = copy.deepcopy(self.network)

    def record(self, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def measure(seed: int, data: Path) -> Measurements:
    """One seed.

    ``"METHOD"`` is the accuracy on held-out tasks after transfer in percent, ``"METHOD-z"`` with the routing alone and
    ``"METHOD-mu"`` with the averaged skills, ``"METHOD zero-shot"`` that before transfer, ``"random"`` that of a new LoRA;
    ``"... numbers"`` how many numbers are trained for a task. ``"METHOD trained"`` is the accuracy on the tasks that were
    trained, and ``"METHOD cosine"`` the mean over training, at ``"METHOD cosine STEP"``, of the mean cosine of two tasks'
    gradients on the skills.
    """
    sets = glyphs(data, seed)
    tasks = questions(sets, seed, SIZES)
    start = base(sets, seed)
    learn = partial(_learned, new=[_stacked(tasks[kind]) for kind in ("validation", "test")])
    measured: dict[str, float] = {}
    for name, method in METHODS.items():
        network, inserted, snapshots = _trained(start, method, tasks["train"], seed)
        measured[f"{name} trained"] = network.accuracy(tasks["train"].test)
        cosines = {step: _alignment(kept, tasks["train"]) for step, kept in snapshots.items()}
        measured |= {f"{name} cosine {step}": cosine for step, cosine in cosines.items()}
        measured[f"{name} cosine"] = sum(cosines.values()) / len(cosines)
        routing = ("*.logits.new",) if method.skills > 1 else ()
        inserted = inserted.add_tasks([NEW]).freeze("*.a", "*.b", *routing)
        measured |= learn(f"{name} zero-shot", network, rates=(0.0,), steps=0)
        measured |= learn(name, network)
        if routing:
            inserted.freeze(*routing)
            measured |= learn(f"{name}-z", network, rates=ROUTING_RATES, logits=None)
            averaged(inserted, [NEW]).freeze()
            measured |= learn(f"{name}-mu", network)
    torch.manual_seed(seed)
    network, _ = adapted(start, LoRA(rank=1, alpha=1), [NEW], torch.empty(0, 4))
    return measured | learn("random", network)


def _trained(start: Answering, method: MHR, tasks: Questions, seed: int) -> tuple[Answering, Inserted, dict[int, Answering]]:
    """The best of `RATES` on the tasks' validation images, and what it was on the way."""
    tried = []
    for lr in RATES:
        torch.manual_seed(seed)
        network, inserted = adapted(start, method, tasks.names, tasks.classes)
        snapshots = Snapshots(network)
        rates = {"*.logits.*": LOGITS, "*": lr}
        settings: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH, "lr": rates, "evaluate_every": STEPS, "seed": seed}
        fit(network, tasks.train, listeners=[snapshots], **settings)
        tried.append((network.accuracy(tasks.validation), network, inserted, snapshots.kept))
    return max(tried, key=lambda found: found[0])[1:]


def _alignment(network: Answering, tasks: Questions) -> float:
    """The mean over pairs of tasks of the cosine of their gradients on the skills."""
    few = tasks.train.subset(torch.cat([rows[:LOOK] for rows in _rows(tasks, "train")]))
    cosines = gradient_cosines(network.losses(few[:]), list(network.shared_parameters()))
    size = len(cosines)
    return float((cosines.sum() - size) / (size * (size - 1)))


Few = tuple[Tensor, Tensor, Tensor, list[tuple[Tensor, Tensor]]]
"""Of ``T`` tasks: the first images ``(T, SHOTS, ...)`` and their answers, the classes ``(T, 4)``, and each task's test."""


def _stacked(tasks: Questions) -> Few:
    rows = torch.stack([rows[:SHOTS] for rows in _rows(tasks, "train")])
    inputs, targets = tasks.train[:]
    test, truth = tasks.test[:]
    assert not isinstance(inputs, Tensor) and not isinstance(test, Tensor)
    tests = [(test["images"][found], truth["answer"][found]) for found in _rows(tasks, "test")]
    return inputs["images"][rows], targets["answer"][rows], tasks.classes, tests


def _learned(
    name: str,
    network: Answering,
    new: list[Few],
    rates: tuple[float, ...] = TRANSFER_RATES,
    logits: float | None = LOGITS,
    steps: int | None = None,
) -> dict[str, float]:
    """Accuracy on the last of ``new`` with the rate that is best on the first; and how many numbers a task trains.

    Args:
        logits: the rate of the routing, that of everything else being one of ``rates``; ``None`` for these themselves.
        steps: `TRANSFER_STEPS` by default.
    """
    images, answers, classes = (torch.cat(found) for found in zip(*[few[:3] for few in new], strict=True))
    tried = []
    for lr in rates:
        by_name: Mapping[str, float] = {"*.logits.*": lr if logits is None else logits, "*": lr}
        ask = transfer(network, images, classes, answers, by_name, TRANSFER_STEPS if steps is None else steps)
        tried.append(list(_accuracies(ask, new)))
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    best = max(tried, key=lambda accuracies: accuracies[0])
    return {name: best[1], f"{name} numbers": trained}


@torch.no_grad()
def _accuracies(ask: Any, new: list[Few]) -> Iterator[float]:
    """The mean accuracy of the tasks of each of ``new``, in percent; images are padded to one number."""
    tests = [test for few in new for test in few[3]]
    images = torch.nn.utils.rnn.pad_sequence([images for images, _ in tests], batch_first=True)
    said = ask(images).argmax(2)
    found = [100 * float((row[: len(y)] == y).float().mean()) for row, (_, y) in zip(said, tests, strict=True)]
    for few in new:
        own, found = found[: len(few[3])], found[len(few[3]) :]
        yield sum(own) / len(own)


def _rows(tasks: Questions, part: str) -> list[Tensor]:
    """Where the examples of each task are in a split."""
    inputs = getattr(tasks, part).inputs
    return [(inputs["task"] == number).nonzero().flatten() for number in range(len(tasks.names))]
