"""The paired comparison of two models: agreement with closed forms, error rates, pairing, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polytask as pt
from polytask.comparison.diff import diff
from polytask.errors import InputError


class Given(nn.Module):
    """An encoder whose features are the inputs."""

    width = 1

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def model(*tasks: pt.Task) -> pt.Model:
    """A model that predicts its inputs: each head takes a column for itself, and a logit's sign is the class."""
    built = pt.Model(Given(), tasks)
    for i, name in enumerate(built.tasks):
        built.heads[name] = Column(i)
    return built


class Column(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, features: Tensor) -> Tensor:
        return features[:, self.index, None]


def rows(predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> pt.Examples:
    return pt.Examples(torch.stack(list(predictions.values()), 1), dict(targets))


def right(flags: Tensor, label: Tensor) -> Tensor:
    """Logits for ``label`` that are right where ``flags``."""
    return torch.where(flags == (label == 1), 3.0, -3.0)


def test_a_model_is_neither_better_nor_worse_than_itself() -> None:
    y = torch.randn(50, generator=torch.Generator().manual_seed(0))
    same = model(pt.Task.regression("y"))
    (found,) = diff(same, same, rows({"y": y + 0.3}, {"y": y}))
    assert (found.difference, found.low, found.high, found.p, found.verdict) == (0, 0, 0, 1, "undecided")
    assert found.a == found.b == pytest.approx(0.3)


def test_a_mean_absolute_error_has_the_interval_of_its_closed_form() -> None:
    generator = torch.Generator().manual_seed(1)
    y, noise_a, noise_b = (torch.randn(400, generator=generator) for _ in range(3))
    task = pt.Task.regression("y", metric="mae")
    before, after = rows({"y": y + noise_a}, {"y": y}), rows({"y": y + 1.1 * noise_b}, {"y": y})
    (found,) = diff(model(task), model(task), before, after, resamples=2000)
    each = (1.1 * noise_b).abs() - noise_a.abs()
    error = float(each.std()) / math.sqrt(len(each))
    assert found.difference == pytest.approx(float(each.mean()), abs=1e-6)
    assert found.low == pytest.approx(float(each.mean()) - 1.96 * error, abs=0.1 * error * 1.96)
    assert found.high == pytest.approx(float(each.mean()) + 1.96 * error, abs=0.1 * error * 1.96)


def test_what_is_hard_for_both_models_does_not_blur_the_difference() -> None:
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(200, generator=generator)
    hard = 100 * torch.rand(200, generator=generator)
    slight = 0.5 + 0.1 * torch.rand(200, generator=generator)
    task = pt.Task.regression("y", metric="mae")
    before, after = rows({"y": y + hard}, {"y": y}), rows({"y": y + hard + slight}, {"y": y})
    (found,) = diff(model(task), model(task), before, after)
    assert found.verdict == "worse"
    assert found.high - found.low < 0.02  # unpaired, the error of about 50 +- 29 would give an interval 100 times as wide


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_the_verdict_follows_the_direction_of_the_metric(metric: str) -> None:
    generator = torch.Generator().manual_seed(3)
    label = (torch.rand(300, generator=generator) < 0.5).float()
    task = pt.Task.binary("b", metric=metric)
    before = rows({"b": right(torch.rand(300, generator=generator) < 0.6, label)}, {"b": label})
    after = rows({"b": right(torch.rand(300, generator=generator) < 0.9, label)}, {"b": label})
    (found,) = diff(model(task), model(task), before, after)
    assert found.verdict == "better"
    assert found.difference == found.b - found.a
    (turned,) = diff(model(task), model(task), after, before)
    assert turned.verdict == "worse"
    assert turned.low < turned.difference < turned.high


def test_models_that_are_equally_good_are_rarely_told_apart() -> None:
    generator = torch.Generator().manual_seed(4)
    alarms = 0
    for seed in range(60):
        y, noise_a, noise_b = (torch.randn(120, generator=generator) for _ in range(3))
        task = pt.Task.regression("y", metric="mae")
        before, after = rows({"y": y + noise_a}, {"y": y}), rows({"y": y + noise_b}, {"y": y})
        alarms += diff(model(task), model(task), before, after, resamples=100, seed=seed)[0].verdict != "undecided"
    assert alarms <= 8  # a rate of 5 % gives more than 8 of 60 once in 500 times


def test_p_values_are_corrected_for_the_number_of_tasks() -> None:
    generator = torch.Generator().manual_seed(5)
    y, noise = torch.randn(100, generator=generator), torch.randn(100, generator=generator)
    tasks = [pt.Task.regression(f"y{i}", metric="mae") for i in range(4)]
    targets = {task.name: y for task in tasks}
    before = rows({task.name: y + noise for task in tasks}, targets)
    after = rows({task.name: y + noise + (0.5 if i == 0 else 0.0) * noise.sign() for i, task in enumerate(tasks)}, targets)
    found = diff(model(*tasks), model(*tasks), before, after, resamples=400)
    (alone,) = diff(model(tasks[0]), model(tasks[0]), before.only(["y0"]), after.only(["y0"]), resamples=400)
    assert found[0].p == pytest.approx(4 * alone.p)
    assert [task.verdict for task in found] == ["worse", "undecided", "undecided", "undecided"]


def test_rows_without_a_label_do_not_count() -> None:
    generator = torch.Generator().manual_seed(6)
    y, noise = torch.randn(200, generator=generator), torch.randn(200, generator=generator)
    task = pt.Task.regression("y", metric="mae")
    holed = torch.where(torch.arange(200) % 2 == 0, y, torch.nan)
    worse = torch.where(torch.arange(200) % 2 == 0, 0.0, 50.0)  # only where nobody knows
    (found,) = diff(
        model(task), model(task), rows({"y": y + noise}, {"y": holed}), rows({"y": y + noise + worse}, {"y": holed})
    )
    assert (found.labels, found.difference, found.verdict) == (100, 0, "undecided")


def test_a_metric_that_is_undefined_decides_nothing() -> None:
    task = pt.Task.regression("y", metric="mae")
    nothing = torch.full((20,), torch.nan)
    (found,) = diff(model(task), model(task), rows({"y": torch.zeros(20)}, {"y": nothing}))
    assert math.isnan(found.a) and math.isnan(found.low) and found.verdict == "undecided"


def test_only_tasks_of_both_models_are_compared_and_the_seed_settles_the_resamples() -> None:
    y = torch.randn(60, generator=torch.Generator().manual_seed(7))
    data = rows({"y": y + 0.1, "z": y - 0.1}, {"y": y, "z": y})
    y_task, z_task = pt.Task.regression("y"), pt.Task.regression("z")
    found = diff(model(y_task, z_task), model(y_task), data)
    assert [task.task for task in found] == ["y"]
    assert diff(model(y_task, z_task), model(y_task), data) == found


@pytest.mark.parametrize(
    ("b", "settings", "words"),
    [
        (pt.Task.regression("z"), {}, r"no common task with labels: \['y'\] and \['z'\]"),
        (pt.Task.regression("y", metric="mae"), {}, r"task 'y': regression by rmse in one model, regression by mae"),
        (pt.Task.binary("y"), {}, r"regression by rmse in one model, binary by auroc"),
        (pt.Task.regression("y"), {"resamples": 10}, "10 resamples cannot decide 1 tasks, expected at least 40"),
        (pt.Task.regression("y"), {"data_b": pt.Examples(torch.zeros(3, 1), {"y": torch.zeros(3)})}, "5 and 3 rows"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(b: pt.Task, settings: dict[str, Any], words: str) -> None:
    data = pt.Examples(torch.zeros(5, 1), {"y": torch.zeros(5), "z": torch.zeros(5)})
    with pytest.raises(InputError, match=words):
        diff(model(pt.Task.regression("y")), model(b), data, **settings)
