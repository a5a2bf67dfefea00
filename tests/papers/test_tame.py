"""TAME: the experiments on a few small images (tests/route/continual has the method's closed forms)."""

import math
from pathlib import Path

import pytest
import torch
from tests.papers.real_data import folder_with

from polytask.papers.tame import PAPER, LeNet, comparison, streams
from polytask.papers.tame.picture import plot
from polytask.papers.tame.streams import Data, stream
from polytask.route.continual import Pruning


def small(tasks: int = 5, count: int = 96, classes: int = 2) -> list[Data]:
    """Bright bars, of which the row says the task and the column the label."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for task in range(tasks):
        labels = torch.randint(classes, (count + 20,), generator=generator)
        images = 0.3 * torch.randn(count + 20, 1, 32, 32, generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[0, 5 * task : 5 * task + 6, 3 * label : 3 * label + 4] += 3.0
        found.append(Data((images[:count], labels[:count]), (images[count:], labels[count:])))
    return found


def test_the_networks_layers() -> None:
    images = torch.randn(2, 1, 32, 32)
    torch.manual_seed(0)
    plain = LeNet(2)
    assert plain(images).shape == (2, 2) and sum(p.numel() for p in plain.parameters()) == 61_026
    squashed = LeNet(2, sigmoid=True)
    squashed.load_state_dict(plain.state_dict())
    torch.testing.assert_close(squashed(images), plain(images).sigmoid())
    floor = torch.nn.functional.cross_entropy(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert float(floor) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6) and float(floor) == pytest.approx(
        0.3133, abs=1e-4
    )


def test_streams_follow_their_order_and_repeat_it() -> None:
    tasks = small(3, 10)
    seen = list(stream(tasks, [2, 0], epochs=2, batch=4))
    assert [task for task, *_ in seen] == [2] * 6 + [0] * 6
    assert torch.equal(seen[0][1], seen[3][1]) and len(seen[2][2]) == 2


def test_real_streams() -> None:
    folder = folder_with(streams.FILES)
    tasks = streams.split(folder, 0)
    assert [len(task.train[1]) for task in tasks] and sum(len(task.train[1]) for task in tasks) == 10_000
    assert sum(len(task.test[1]) for task in tasks) == 10_000 and all(set(task.test[1].tolist()) == {0, 1} for task in tasks)
    assert tasks[0].train[0].shape[1:] == (1, 32, 32)
    moved = streams.permuted(folder, 0, tasks=2, images=50)
    assert torch.equal(moved[0].test[1], moved[1].test[1])
    first, second = (data.test[0][:5].flatten(1) for data in moved)
    assert not torch.equal(first, second) and torch.equal(first.sort(1).values, second.sort(1).values)


def test_detections() -> None:
    active = [(0, 0), (0, 1), (0, 1), (1, 1), (1, 1), (1, 2), (1, 3), (2, 3), (2, 3)]
    assert comparison.detections(active) == {
        "found 1": 1.0, "found 2": 0.0, "missed": 1.0, "delay": 2.0, "false alarms": 2.0
    }  # fmt: skip


@pytest.mark.soak
def test_the_comparison_on_a_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "split", lambda data, seed: small())
    monkeypatch.setattr(comparison, "permuted", lambda data, seed: small(2, 64, 3))
    monkeypatch.setattr(comparison, "EPOCHS", 2)
    monkeypatch.setattr(comparison, "SELECTOR_EPOCHS", 6)
    monkeypatch.setattr(comparison, "PRUNING", Pruning(0.5, epochs=1, capacity=50))
    measured = comparison.measure(0, Path())
    for claim in PAPER.claims:
        assert set(claim.pair) <= set(measured)
    assert all(0 <= value <= 100 for value in measured.values())
    assert sum(name.startswith("split found ") for name in measured) == 4
    assert len(plot({0: measured, 1: measured}).axes) == 2
