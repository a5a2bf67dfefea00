"""A label for each pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from polytask import Task
from polytask.task import MISSING

TASK = Task.segmentation("s", classes=["sky", "road", "car"])
EDGE = Task.pixel_binary("e", positive_weight=3.0)


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


def edges() -> torch.Tensor:
    target = (torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.7).float()
    target[0, :3] = torch.nan
    return target


def test_yes_or_no_is_the_logistic_loss_over_known_pixels_at_the_targets_size() -> None:
    output, target = torch.randn(4, 1, 4, 4), edges()
    big = F.interpolate(output, size=(8, 8), mode="bilinear", align_corners=False)[:, 0]
    each = torch.where(target == 1, 3 * F.softplus(-big), F.softplus(big))[~target.isnan()]
    assert EDGE.loss(output, target) == pytest.approx(each.mean().item(), rel=1e-5)
    assert EDGE.head(5)(torch.zeros(2, 5, 7, 9)).shape == (2, 1, 7, 9)


def test_average_precision_is_that_of_rounded_probabilities_whatever_the_pieces() -> None:
    prediction, target = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2)), edges()
    prediction[1, 0, 0, :2] = torch.tensor([0.0, 1.0])
    known = ~target.isnan()
    y, p = target[known].numpy(), prediction[:, 0][known]
    rounded = (p * 4096).long().clamp(max=4095).numpy()
    found = {}
    for name, spec in EDGE.metrics().items():
        metric = spec.build()
        for image in range(4):
            EDGE.update(metric, prediction[image : image + 1], target[image : image + 1])
        found[name] = float(metric.compute())
    assert found["average_precision"] == pytest.approx(average_precision_score(y, rounded), abs=1e-6)
    assert found["average_precision"] == pytest.approx(average_precision_score(y, p.numpy()), abs=1e-3)
    assert found["f1"] == pytest.approx(f1_score(y, p.numpy() > 0.5), abs=1e-6)


def test_average_precision_without_a_positive_is_undefined() -> None:
    metric = EDGE.metrics()["average_precision"].build()
    EDGE.update(metric, torch.rand(1, 1, 8, 8), torch.zeros(1, 8, 8))
    assert metric.compute().isnan()


def test_balanced_pixels_stay_pixels() -> None:
    fitted = Task.pixel_binary("e", positive_weight="balanced").fitted(edges())
    known = edges()[~edges().isnan()]
    assert fitted.kind == "pixel_binary"
    assert fitted.settings()["positive_weight"] == pytest.approx(float((known == 0).sum() / (known == 1).sum()))


def test_a_table_of_yes_and_no_has_both_columns() -> None:
    table = EDGE.table(torch.tensor([0.2, 0.9]).reshape(1, 1, 1, 2))
    assert table["e"].tolist() == [[[0, 1]]] and table["e_probability"].shape == (1, 1, 2)
