"""Numbers: losses in scaled units, predictions and metrics in the target's own."""

from __future__ import annotations

import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from polytask import InputError, Task


def measured(task: Task, prediction: Tensor, target: Tensor, name: str) -> float:
    metric = task.metrics()[name].build()
    for rows in torch.arange(len(target)).split(4):
        task.update(metric, prediction[rows], target[rows])
    return float(metric.compute())


TARGET = torch.tensor([[100.0, 1.0], [120.0, torch.nan], [140.0, 3.0], [90.0, 2.5], [torch.nan, torch.nan], [111.0, 0.0]])
KNOWN = ~TARGET.isnan()


@pytest.fixture
def task() -> Task:
    return Task.regression("t", outputs=["x", "y"], scale="standard").fitted(TARGET)


def test_scale_is_the_mean_and_deviation_of_known_labels(task: Task) -> None:
    means, stds = task.settings()["scale"]
    for i in range(2):
        known = TARGET[KNOWN[:, i], i].double()
        assert means[i] == pytest.approx(known.mean().item())
        assert stds[i] == pytest.approx(known.std(correction=0).item())


def test_a_perfect_scaled_output_has_no_loss_and_decodes_to_the_target(task: Task) -> None:
    means, stds = (torch.tensor(v) for v in task.settings()["scale"])
    output = torch.nan_to_num((TARGET - means) / stds)
    assert task.loss(output, TARGET) == pytest.approx(0, abs=1e-10)
    assert torch.allclose(task.decode(output)[KNOWN], TARGET[KNOWN])


@pytest.mark.parametrize(
    ("robust", "formula"),
    [
        ("mse", lambda e: e**2),
        ("mae", abs),
        ("huber", lambda e: torch.where(e.abs() < 1, e**2 / 2, e.abs() - 0.5)),
    ],
)
def test_loss_is_over_known_scaled_entries(robust: str, formula: object) -> None:
    task = Task.regression("t", outputs=2, robust=robust, scale="standard").fitted(TARGET)
    means, stds = (torch.tensor(v) for v in task.settings()["scale"])
    output = 3 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    errors = (output - (TARGET - means) / stds)[KNOWN]
    assert task.loss(output, TARGET) == pytest.approx(formula(errors).mean().item(), rel=1e-5)  # type: ignore[operator]


def test_metrics_are_in_the_targets_units_and_those_of_scikit_learn(task: Task) -> None:
    prediction = torch.nan_to_num(TARGET) + torch.arange(12.0).reshape(6, 2)
    y, p = TARGET[KNOWN].numpy(), prediction[KNOWN].numpy()
    assert measured(task, prediction, TARGET, "rmse") == pytest.approx(sk.root_mean_squared_error(y, p), rel=1e-5)
    assert measured(task, prediction, TARGET, "mae") == pytest.approx(sk.mean_absolute_error(y, p), rel=1e-5)
    whole = KNOWN.all(1)
    r2 = sk.r2_score(TARGET[whole].numpy(), prediction[whole].numpy())
    assert measured(task, prediction, TARGET, "r2") == pytest.approx(r2, rel=1e-4)


def test_one_output_takes_targets_with_or_without_a_last_dimension() -> None:
    task = Task.regression("t")
    output, target = torch.randn(5, 1), torch.randn(5)
    assert task.loss(output, target) == task.loss(output, target[:, None])
    assert measured(task, output, target, "rmse") == pytest.approx(((output[:, 0] - target) ** 2).mean().sqrt().item())


def test_a_constant_target_keeps_its_scale_finite() -> None:
    fitted = Task.regression("t", scale="standard").fitted(torch.full((4,), 7.0))
    assert fitted.settings()["scale"] == [[7.0], [1.0]]


def test_large_targets_survive_half_precision_outputs() -> None:
    task = Task.regression("t", scale=([1e6], [10.0]))
    assert task.decode(torch.ones(1, 1, dtype=torch.bfloat16)).item() == 1_000_010


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'huber'"):
        Task.regression("t", robust="hubber")
    with pytest.raises(InputError, match="expected 2 means and stds > 0"):
        Task.regression("t", outputs=2, scale=([0.0, 0.0], [1.0, 0.0]))
    with pytest.raises(InputError, match="output 'y' has no training label"):
        Task.regression("t", outputs=["x", "y"], scale="standard").fitted(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(InputError, match="call task"):
        Task.regression("t", scale="standard").loss(torch.zeros(1, 1), torch.zeros(1))


def test_pixels_are_rows_and_small_outputs_are_resized() -> None:
    task = Task.pixel_regression("depth", outputs=2, scale=([0.0, 5.0], [1.0, 2.0]))
    target = torch.randn(3, 2, 8, 8)
    target[0, 0, :4] = torch.nan
    output = torch.randn(3, 2, 4, 4)
    big = torch.nn.functional.interpolate(output, size=(8, 8), mode="bilinear", align_corners=False)
    scaled = (target - torch.tensor([0.0, 5.0])[:, None, None]) / torch.tensor([1.0, 2.0])[:, None, None]
    known = ~target.isnan()
    assert task.loss(output, target) == pytest.approx(((big - scaled)[known] ** 2).mean().item(), rel=1e-5)
    prediction = task.decode(output)
    resized = torch.nn.functional.interpolate(prediction, size=(8, 8), mode="bilinear", align_corners=False)
    rmse = ((resized - target)[known] ** 2).mean().sqrt().item()
    assert measured(task, prediction, target, "rmse") == pytest.approx(rmse, rel=1e-5)
