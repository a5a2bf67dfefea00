"""The claims on MNIST: TAME against one network, replay, and what it would be with each of its parts replaced by the truth.

Five tasks of two digits follow one another, 4 epochs each, in batches of 128; the label is the digit's place in its pair. A
network is a LeNet. All that learn on the stream take one step of SGD on each batch (lr 0.02, momentum 0.9, weight decay
5e-4), and no setting was tuned for any of them: beta 0.2, a window of 35 losses and a buffer of 1,000 are fixed for all.

- ``tame``: experts by the loss, and a selector, trained on the buffer for 30 epochs.
- ``told``: the same, told where tasks change; ``chosen``: TAME's experts, each input by the expert that most of its task's
  batches went to; ``random``: TAME's experts, drawn at random.
- ``single``: one network. ``replay``: one network that takes each batch together with as many examples from a buffer of
  TAME's size: twice the examples a step, and then as many steps on the buffer as the selector took.
- ``pruned``: TAME whose experts are pruned to 2 % when they are left and trained on with 500 examples for 20 epochs (200 in
  the authors' code), and whose selector is pruned by half and trained on for 5.

Reported are percent of the test images of all tasks, each by its task's own labels, and per boundary whether the shift was
found, how many batches late, and how many alarms changed the expert where the task did not change. Besides: three
permutations of the pixels, ten classes, 2 epochs each of 4,000 images; and pairs of digits in the order 0, 1, 2, 1, 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.papers.tame.networks import LeNet
from polytask.papers.tame.streams import FILES, Data, permuted, split, stream
from polytask.route.continual import TAME, Pruning, RoutedExperts, fit_selector

__all__ = ["FILES", "measure"]

EPOCHS, WINDOW, BUFFER, SELECTOR_EPOCHS, LR = 4, 35, 1000, 30, 0.02
PRUNING = Pruning(0.98, epochs=20, lr=0.02, capacity=500)
RECURRING = (0, 1, 2, 1, 3)


def measure(seed: int, data: Path) -> dict[str, float]:
    """One seed of everything; accuracies in percent."""
    tasks = split(data, seed)
    found = {f"split {name}": value for name, value in compare(tasks, seed, EPOCHS, 2).items()}
    found["split tasks"] = float(len(tasks))
    moved = permuted(data, seed)
    _, few = followed(moved, range(len(moved)), seed, 2, 10)
    found["permuted tame"] = accuracy(few.routed(_selector(few, seed)), moved)
    found["permuted single"] = accuracy(RoutedExperts([single(moved, seed, 2, 10)]), moved)
    found["permuted experts"], found["permuted tasks"] = float(len(few.experts)), float(len(moved))
    active, again = followed(tasks, RECURRING, seed, EPOCHS, 2)
    found["recurring experts"], found["recurring tasks"] = float(len(again.experts)), float(len(set(RECURRING)))
    found["recurring returned"] = float(_main(active, RECURRING, 1) == _main(active, RECURRING, 3))
    return found


def compare(tasks: Sequence[Data], seed: int, epochs: int, classes: int) -> dict[str, float]:
    """All arms on one stream of tasks, each of which comes once."""
    order = range(len(tasks))
    active, tame = followed(tasks, order, seed, epochs, classes)
    _, told = followed(tasks, order, seed, epochs, classes, told=True)
    _, thin = followed(tasks, order, seed, epochs, classes, pruning=PRUNING)
    own = [_main(active, order, place) for place in order]
    selector = _selector(tame, seed)
    routed = tame.routed(selector)
    found = {
        "tame": accuracy(routed, tasks),
        "told": accuracy(told.routed(_selector(told, seed)), tasks),
        "chosen": accuracy(routed, tasks, own),
        "random": accuracy(routed, tasks, seed=seed),
        "single": accuracy(RoutedExperts([single(tasks, seed, epochs, classes)]), tasks),
        "replay": accuracy(RoutedExperts([single(tasks, seed, epochs, classes, replay=True)]), tasks),
        "pruned": accuracy(thin.routed(_thinned(_selector(thin, seed), thin, seed)), tasks),
        "experts": float(len(tame.experts)),
    }
    with torch.no_grad():
        hits = [(selector(data.test[0])[:, : len(tame.experts)].argmax(1) == own[t]).float() for t, data in enumerate(tasks)]
    return found | detections(active) | {"hits": 100 * float(torch.cat(hits).mean())}


def followed(
    tasks: Sequence[Data], order: Sequence[int], seed: int, epochs: int, classes: int, told: bool = False,
    pruning: Pruning | None = None,
) -> tuple[list[tuple[int, int]], TAME]:  # fmt: skip
    """TAME on a stream, and of each batch the segment and the expert that was active."""
    torch.manual_seed(seed)
    tame = TAME(
        lambda: LeNet(classes), sgd, first=math.log(classes), window=WINDOW, buffer=BUFFER, pruning=pruning, seed=seed
    )
    active = []
    for place, task in enumerate(order):
        for number, (_, images, labels) in enumerate(stream(tasks, [task], epochs)):
            event = tame.step(images, labels, shift=(place > 0 and number == 0) if told else None)
            active.append((place, event.expert))
    tame.finish()
    return active, tame


def single(tasks: Sequence[Data], seed: int, epochs: int, classes: int, replay: bool = False) -> nn.Module:
    """One network on the stream; with replay each step has as many examples from a reservoir besides."""
    torch.manual_seed(seed)
    network = LeNet(classes)
    optimizer = sgd(network.parameters())
    buffer = TAME(lambda: nn.Identity(), first=1.0, buffer=BUFFER, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _, images, labels in stream(tasks, range(len(tasks)), epochs):
        old = images[:0], labels[:0]
        if replay and len(buffer.reservoir):
            kept = buffer.examples()
            rows = torch.randint(len(kept[1]), (len(labels),), generator=generator)
            old = kept[0][rows], kept[1][rows]
        step(torch.cat([images, old[0]]), torch.cat([labels, old[1]]))
        if replay:
            buffer.keep(images, labels)
    if replay:
        kept = buffer.examples()
        for _ in range(SELECTOR_EPOCHS):
            for rows in torch.randperm(len(kept[1]), generator=generator).split(128):  # type: ignore[no-untyped-call]
                step(kept[0][rows], kept[1][rows])
    return network.eval()


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=5e-4)  # type: ignore[arg-type]


@torch.no_grad()
def accuracy(
    routed: RoutedExperts, tasks: Sequence[Data], own: Sequence[int] | None = None, seed: int | None = None
) -> float:
    """Of the test images of all tasks, in percent, with the selector's experts, each task's ``own``, or random ones."""
    generator = torch.Generator().manual_seed(seed or 0)
    right, count = 0, 0
    for task, data in enumerate(tasks):
        images, labels = data.test
        chosen = None
        if own is not None:
            chosen = torch.full((len(labels),), own[task])
        elif seed is not None:
            chosen = torch.randint(len(routed.experts), (len(labels),), generator=generator)
        right += int((routed.eval()(images, chosen).argmax(1) == labels).sum())
        count += len(labels)
    return 100 * right / count


def detections(active: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Of each boundary whether another expert became active in the task after it, the mean delay in batches of those that
    were found, and how many other changes there were."""
    found, delays, false = {}, [], 0
    start, before = 0, active[0][1]
    for number in range(1, len(active)):
        place, expert = active[number]
        if place != active[number - 1][0]:
            start, waiting = number, True
            found[f"found {place}"] = 0.0
        if expert != before:
            if place > 0 and waiting:
                found[f"found {place}"], waiting = 1.0, False
                delays.append(number - start)
            else:
                false += 1
            before = expert
    missed = sum(1 - value for value in found.values())
    return found | {"missed": missed, "delay": sum(delays) / len(delays) if delays else 0.0, "false alarms": float(false)}


def _main(active: Sequence[tuple[int, int]], order: Sequence[int], place: int) -> int:
    """The expert that most batches of a segment went to."""
    experts = [expert for segment, expert in active if segment == place]
    return max(set(experts), key=experts.count)


def _selector(tame: TAME, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return fit_selector(LeNet(max(2, len(tame.experts))), tame.samples(), epochs=SELECTOR_EPOCHS, lr=LR, seed=seed)


def _thinned(selector: nn.Module, tame: TAME, seed: int) -> nn.Module:
    """A selector without half of its weights, as the authors' code has it, trained on for a sixth of its epochs."""
    images, experts = zip(*tame.samples(), strict=True)
    Pruning(0.5, epochs=SELECTOR_EPOCHS // 6, lr=1e-3).apply(
        selector, torch.stack(images), torch.tensor(experts), F.cross_entropy, seed
    )
    return selector.eval()
