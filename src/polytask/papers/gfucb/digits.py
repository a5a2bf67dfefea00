"""The claims' experiment: tasks that reward classes of images differently, and have to see which class an image is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polytask.claim import Measurements
from polytask.papers.gfucb.bandit import Independent, Player, Round, play
from polytask.papers.gfucb.finite import FiniteClass, Map
from polytask.papers.gfucb.network import MultiHead, mlp
from polytask.papers.gfucb.neural import Greedy, Linearised

TASKS, CLASSES, ACTIONS, ROUNDS, NOISE = 10, 10, 5, 300, 0.2
"""Tasks, classes and coordinates of the representation, images in a round, rounds, and the deviation of rewards."""
RADII, CHANCES = (0.001, 0.01, 0.1, 1.0), (0.0, 0.02, 0.05, 0.1)
"""What an arm may explore by: the radius of its confidence set, or, of the greedy one, the chance to draw an action."""
CHOSEN = {"joint": 1.0, "greedy": 0.0, "independent": 0.01, "pixels": 0.001, "oracle": 1.0, "joint of 4": 0.1}
"""Of each arm, the best of its four values on the rounds of `tuned`."""
TUNING, TUNING_ROUNDS = (1000,), 150
"""Seeds of these rounds, which are not the claims', and how many there are of each."""
EVERY, STEPS, RATE, DECAY, SKETCH = 20, 100, 1e-2, 0.3, 128
"""Of all networks: rounds between fits, steps of a fit, its rate and weight decay, and numbers of the sketch."""
MARKS = 10
"""Points of each curve that are kept."""


def image_rounds(
    images: Tensor, labels: Tensor, seed: int, tasks: int = TASKS, rounds: int = ROUNDS, actions: int = ACTIONS
) -> list[Round]:
    """In each round and task images of different classes; a task's mean rewards of the classes are 0, 1/9 .. 1 in its order.

    Args:
        images: ``(N, ...)``.
        labels: ``(N,)``, integers from 0 to 9.
        seed: of the orders, the images and the noise, which do not depend on how many rounds follow.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(CLASSES, generator=generator) for _ in range(tasks)])
    table = orders.float() / (CLASSES - 1)
    of_class = [(labels == c).nonzero()[:, 0] for c in range(CLASSES)]
    sizes = torch.tensor([len(rows) for rows in of_class])
    places = torch.nn.utils.rnn.pad_sequence(of_class, batch_first=True)
    found = []
    for _ in range(rounds):
        classes = torch.stack([torch.randperm(CLASSES, generator=generator)[:actions] for _ in range(tasks)])
        which = (torch.rand(tasks, actions, generator=generator) * sizes[classes]).long()
        noise = NOISE * torch.randn(tasks, generator=generator)
        found.append(Round(images[places[classes, which]], table.gather(1, classes), noise))
    return found


@cache
def small_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: 64 pixels in [0, 1], and labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.data / 16).float(), torch.from_numpy(digits.target).long()


def with_constant(images: Tensor) -> Tensor:
    """Raw pixels as features, and a constant 1."""
    return torch.cat([images.flatten(1), torch.ones(len(images), 1)], 1)


def training() -> dict[str, Any]:
    """What the training of all networks has in common."""
    return {"every": EVERY, "steps": STEPS, "lr": RATE, "weight_decay": DECAY}


def network(seed: int, tasks: int, encoder: Callable[[], nn.Module]) -> MultiHead:
    torch.manual_seed(seed)
    return MultiHead(encoder(), tasks)


def player(arm: str, value: float, seed: int, encoder: Callable[[], nn.Module], classes: Map) -> tuple[Player, int]:
    """An arm that explores by ``value``, and for how many tasks it is; ``classes`` is the representation of the oracle."""
    settings = training()
    if arm == "greedy":
        return Greedy(network(seed, TASKS, encoder), value, seed=seed, **settings), TASKS
    if arm in ("pixels", "oracle"):
        return FiniteClass([with_constant if arm == "pixels" else classes], TASKS, value, joint=False), TASKS

    def optimistic(tasks: int, seed: int) -> Linearised:
        return Linearised(network(seed, tasks, encoder), value, sketch=SKETCH, seed=seed, **settings)

    if arm == "independent":
        return Independent([optimistic(1, seed + i) for i in range(TASKS)]), TASKS
    tasks = TASKS if arm == "joint" else 4
    return optimistic(tasks, seed), tasks


def measure(seed: int, data: Path, rounds: int = ROUNDS) -> Measurements:
    """``"ARM regret"``, the cumulative regret per task of each arm on ten tasks; ``"joint of 4 regret"`` on the first four.

    The regret of one task by itself is the independent one. ``"ARM at T"`` are its curves, ``"... of four"`` the mean over
    the first four tasks alone.
    """
    found: dict[str, float] = {}
    for arm, value in CHOSEN.items():
        total = regrets(arm, value, seed, rounds).cumsum(0)
        found[f"{arm} regret"] = float(total[-1].mean())
        found[f"{arm} regret of four"] = float(total[-1, :4].mean())
        for mark in range(1, MARKS + 1):
            t = rounds * mark // MARKS
            found[f"{arm} at {t}"] = float(total[max(t, 1) - 1].mean())
    return found


def regrets(arm: str, value: float, seed: int, rounds: int = ROUNDS) -> Tensor:
    """``(T, M)`` of an arm on digits; all arms face the same rounds of a seed."""
    images, labels = small_digits()
    seen = {tuple(image.tolist()): int(label) for image, label in zip(images, labels, strict=True)}

    def classes(inputs: Tensor) -> Tensor:
        found = torch.tensor([seen[tuple(image.tolist())] for image in inputs], dtype=torch.long)
        return torch.nn.functional.one_hot(found, CLASSES).float()

    agent, tasks = player(arm, value, seed, partial(mlp, 64), classes)
    return play(agent, [r.only(slice(tasks)) for r in image_rounds(images, labels, seed, rounds=rounds)])


def tuned(arm: str, seeds: Sequence[int] = TUNING, rounds: int = TUNING_ROUNDS) -> dict[float, float]:
    """The regret per task of an arm with each value that it may explore by, the mean over these seeds."""
    values = CHANCES if arm == "greedy" else RADII
    return {value: sum(float(regrets(arm, value, s, rounds).sum(0).mean()) for s in seeds) / len(seeds) for value in values}
