"""A label for each pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import jaccard_score

from polytask import Task
from polytask.task import MISSING

TASK = Task.segmentation("s", classes=["sky", "road", "car"])


def labels() -> torch.Tensor:
    target = torch.randint(3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    target[0, :3] = MISSING
    return target


def test_loss_is_cross_entropy_over_known_pixels() -> None:
    output, target = torch.randn(2, 3, 8, 8), labels()
    assert TASK.loss(output, target) == pytest.approx(F.cross_entropy(output, target, ignore_index=MISSING).item())
    assert TASK.count(target) == (target != MISSING).sum()


def test_small_outputs_are_resized_to_the_target() -> None:
    output, target = torch.randn(2, 3, 4, 4), labels()
    big = F.interpolate(output, size=(8, 8), mode="bilinear", align_corners=False)
    assert TASK.loss(output, target) == pytest.approx(F.cross_entropy(big, target, ignore_index=MISSING).item(), rel=1e-5)


def test_miou_is_the_mean_jaccard_index_over_known_pixels() -> None:
    output, target = torch.randn(2, 3, 8, 8), labels()
    metric = TASK.metrics()["miou"].build()
    for image in range(2):
        TASK.update(metric, TASK.decode(output)[image : image + 1], target[image : image + 1])
    known = target != MISSING
    expected = jaccard_score(target[known], output.argmax(1)[known], average="macro")
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


def test_the_head_keeps_height_and_width() -> None:
    assert TASK.head(5)(torch.zeros(2, 5, 7, 9)).shape == (2, 3, 7, 9)
