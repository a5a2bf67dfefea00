"""What every kind of task promises, and how a user adds one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polytask as pt
from polytask import InputError, Task
from polytask.task import MISSING, MetricSpec, check_unique
from polytask.task._task import complete

CASES: list[tuple[Task, tuple[int, ...], tuple[int, ...]]] = [
    (Task.binary("t"), (6, 1), (6,)),
    (Task.classification("t", classes=3, class_weights=[1.0, 2.0, 3.0]), (6, 3), (6,)),
    (Task.ordinal("t", classes=4), (6, 3), (6,)),
    (Task.multilabel("t", labels=2), (6, 2), (6, 2)),
    (Task.regression("t", outputs=2, robust="huber", scale=([1.0, 2.0], [3.0, 4.0])), (6, 2), (6, 2)),
    (Task.segmentation("t", classes=3), (6, 3, 4, 4), (6, 4, 4)),
    (Task.pixel_binary("t", positive_weight=2.0), (6, 1, 4, 4), (6, 4, 4)),
    (Task.pixel_regression("t", outputs=2), (6, 2, 4, 4), (6, 2, 4, 4)),
]


def known_labels(task: Task, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if task.integer_labels:
        return torch.randint(3, shape, generator=generator)
    values = torch.rand(shape, generator=generator)
    return (values > 0.5).float() if task.kind in ("binary", "multilabel", "pixel_binary") else values


@pytest.mark.parametrize(("task", "out", "shape"), CASES, ids=lambda v: v.kind if isinstance(v, Task) else "")
class TestEveryKind:
    def test_rows_without_labels_change_nothing(self, task: Task, out: tuple[int, ...], shape: tuple[int, ...]) -> None:
        output = torch.randn(out).sort(1, descending=True).values.requires_grad_()
        target = known_labels(task, shape)
        target[3:] = task.missing(shape[1:])
        loss = task.loss(output, target)
        assert loss.item() == pytest.approx(task.loss(output[:3], target[:3]).item(), rel=1e-5)
        loss.backward()
        assert output.grad is not None and output.grad.isfinite().all() and (output.grad[3:] == 0).all()

    def test_no_label_at_all_is_a_loss_of_zero_without_gradient(
        self, task: Task, out: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        output = torch.randn(out).sort(1, descending=True).values.requires_grad_()
        loss = task.loss(output, task.missing(shape))
        loss.backward()
        assert loss == 0 and output.grad is not None and (output.grad == 0).all()
        assert task.count(task.missing(shape)) == 0

    def test_it_survives_json(self, task: Task, out: tuple[int, ...], shape: tuple[int, ...]) -> None:
        import json

        assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task

    def test_the_head_gives_what_the_loss_takes(self, task: Task, out: tuple[int, ...], shape: tuple[int, ...]) -> None:
        features = torch.randn(6, 5, *out[2:])
        assert task.head(5)(features).shape == out

    def test_a_constant_prediction_can_be_scored(self, task: Task, out: tuple[int, ...], shape: tuple[int, ...]) -> None:
        target = known_labels(task, shape)
        prediction = task.constant(target).expand(len(target), *task.decode(torch.zeros(out)).shape[1:])
        for spec in task.metrics().values():
            metric = spec.build()
            task.update(metric, prediction, target)
            assert torch.as_tensor(metric.compute()).ndim == 0

    def test_a_table_has_the_columns_that_names_promise(
        self, task: Task, out: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        if len(out) == 2:
            table = task.table(task.decode(torch.randn(out).sort(1, descending=True).values))
            assert list(table) == task.names()
            assert all(len(column) == 6 for column in table.values())

    def test_an_unknown_metric_suggests_one(self, task: Task, out: tuple[int, ...], shape: tuple[int, ...]) -> None:
        name = next(iter(task.metrics()))
        settings = {**task.to_dict(), "metric": name + "x"}
        with pytest.raises(InputError, match=f"did you mean '{name}'"):
            Task.from_dict(settings)


class Count(Task):
    """A user's kind: counts, by the Poisson loss of a log rate."""

    kind = "count"

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, 1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        present = self.present(target)
        each = nn.functional.poisson_nll_loss(output[:, 0], torch.nan_to_num(target), reduction="none")
        return torch.where(present, each, 0).sum() / present.sum().clamp(min=1)

    def decode(self, output: Tensor) -> Tensor:
        return output.exp()

    def metrics(self) -> Mapping[str, MetricSpec]:
        import torchmetrics

        return {"mae": MetricSpec(torchmetrics.MeanAbsoluteError, False)}

    def update(self, metric: Any, prediction: Tensor, target: Tensor) -> None:
        super().update(metric, prediction[:, 0], target)

    def constant(self, target: Tensor) -> Tensor:
        return target.nanmean().reshape(1, 1)


def test_a_users_kind_works_from_training_to_evaluation() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(256, 3)
    target = torch.poisson(torch.exp(inputs[:, 0]))
    target[::5] = torch.nan
    examples = pt.Examples(inputs, {"visits": target})
    model = pt.Model(nn.Identity(), [Task.of_kind("count", "visits")], width=3)
    before = pt.evaluate(model, examples)["visits"]["mae"]
    fitted = pt.fit(model, examples, examples, steps=150, lr=0.05)
    assert fitted.metrics["visits"]["mae"] < 0.8 * before
    assert Task.from_dict(Task.of_kind("count", "visits").to_dict()) == Task.of_kind("count", "visits")


def test_names_are_checked() -> None:
    with pytest.raises(InputError, match="not empty"):
        Task.binary("")
    with pytest.raises(InputError, match="that is not empty"):
        Task.binary("a.b")
    with pytest.raises(InputError, match="two tasks are named 'a'"):
        check_unique([Task.binary("a"), Task.regression("a")])
    with pytest.raises(InputError, match="did you mean 'binary'"):
        Task.of_kind("binry", "a")
    with pytest.raises(InputError, match="repeat"):
        Task.classification("a", classes=["x", "x"])


class TestComplete:
    """The two paths of a loss, for labels that are all there and with a mask, agree."""

    def test_it_sees_what_is_missing(self) -> None:
        assert complete(torch.tensor([0.0, -3.0])) and complete(torch.tensor([[0], [4]]))
        assert not complete(torch.tensor([0.0, torch.nan])) and not complete(torch.tensor([0, MISSING]))
        assert not complete(torch.tensor([])) and not complete(torch.zeros(0, dtype=torch.int64))
        assert not complete(torch.zeros(2, device="meta"))
        assert not complete(torch.tensor([torch.inf, -torch.inf]))  # cannot tell: the mask is always safe

    @pytest.mark.parametrize(
        ("task", "output", "target"),
        [
            (Task.binary("t"), torch.randn(9, 1), torch.arange(9.0) % 2),
            (Task.binary("t", positive_weight=3), torch.randn(9, 1), torch.arange(9.0) % 2),
            (Task.classification("t", classes=3, label_smoothing=0.1), torch.randn(9, 3), torch.arange(9) % 3),
            (Task.multilabel("t", labels=2), torch.randn(9, 2), torch.randn(9, 2).sign().clamp(min=0)),
            (Task.regression("t", outputs=2, robust="huber"), torch.randn(9, 2), torch.randn(9, 2)),
            (Task.regression("t", scale=((3,), (2,))), torch.randn(9, 1), torch.randn(9)),
        ],
    )
    def test_both_paths_agree_and_work_under_vmap(self, task: Task, output: Tensor, target: Tensor) -> None:
        one = torch.cat([target, task.missing(target[:1].shape).to(target.dtype)])
        padded = torch.cat([output, torch.randn_like(output[:1])]).requires_grad_()
        plain = output.clone().requires_grad_()
        losses = task.loss(plain, target), task.loss(padded, one)
        torch.testing.assert_close(*losses)
        gradients = torch.autograd.grad(losses[0], plain)[0], torch.autograd.grad(losses[1], padded)[0]
        torch.testing.assert_close(gradients[0], gradients[1][:9])
        each = torch.vmap(lambda o, t: task.loss(o[None], t[None]))(output, target)
        expected = [task.loss(o[None], t[None]) for o, t in zip(output, target, strict=True)]
        torch.testing.assert_close(each, torch.stack(expected))
