"""Metrics of a model on data: whole and in pieces, with labels missing, and for the best constant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from tests.training.small import examples, model, tasks
from torch import Tensor, nn
from torch.utils.data import DataLoader

import polytask as pt
from polytask.errors import InputError
from polytask.training import evaluate, evaluate_constant
from polytask.training.evaluate import evaluate_losses


def known(data: pt.Examples, name: str) -> Tensor:
    target = data.targets[name]
    return target >= 0 if name == "colour" else ~target.isnan()


def test_metrics_are_those_of_scikit_learn_on_the_rows_with_a_label() -> None:
    network, data = model(), examples(90)
    found = evaluate(network, data)
    with torch.no_grad():
        features = network.encoder(data.inputs)
        logits = {name: head(features) for name, head in network.heads.items()}
    rows = known(data, "colour")
    assert found["colour"]["accuracy"] == pytest.approx(
        sk.accuracy_score(data.targets["colour"][rows], logits["colour"].argmax(1)[rows])
    )
    rows = known(data, "round")
    assert found["round"]["auroc"] == pytest.approx(
        sk.roc_auc_score(data.targets["round"][rows], logits["round"][rows, 0].sigmoid())
    )
    rows = known(data, "weight")
    assert found["weight"]["rmse"] == pytest.approx(
        sk.root_mean_squared_error(data.targets["weight"][rows], logits["weight"][rows, 0])
    )
    assert list(found) == ["colour", "round", "weight"]


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_batches_of_any_size_give_the_same(size: int) -> None:
    network, data = model(), examples(90)
    whole = evaluate(network, data)
    loader = DataLoader(data, batch_size=min(size, 90))
    separate: dict[str, Any] = {"colour": data.only(["colour"]), "weight": loader, "round": data.only(["round"])}
    for found in (evaluate(network, data, batch_size=size), evaluate(network, loader), evaluate(network, separate)):
        for name, values in whole.items():
            assert found[name] == pytest.approx(values, rel=1e-5)


def test_tasks_without_targets_are_left_out_and_targets_without_tasks_ignored() -> None:
    data = examples(30)
    other = pt.Examples(data.inputs, {"weight": data.targets["weight"], "unknown": torch.zeros(30)})
    assert list(evaluate(model(), other)) == ["weight"]


def test_a_metric_without_labels_is_not_a_number() -> None:
    data = examples(30)
    missing = {name: task.missing((30,)) for name, task in model().tasks.items()}
    found = evaluate(model(), pt.Examples(data.inputs, missing))
    assert all(math.isnan(value) for values in found.values() for value in values.values())


def test_auroc_of_labels_that_are_all_alike_is_not_a_number() -> None:
    data = examples(30)
    found = evaluate(model(), pt.Examples(data.inputs, {"round": torch.ones(30)}))
    assert math.isnan(found["round"]["auroc"])


def test_the_best_constant() -> None:
    data = examples(200)
    found = evaluate_constant({task.name: task for task in tasks()}, data, batch_size=33)
    colour = data.targets["colour"][known(data, "colour")].numpy()
    assert found["colour"]["accuracy"] == pytest.approx(np.bincount(colour).max() / len(colour))
    shares = np.bincount(colour) / len(colour)
    assert found["colour"]["log_loss"] == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-5)
    assert found["round"]["auroc"] == 0.5
    weight = data.targets["weight"][known(data, "weight")]
    assert found["weight"]["rmse"] == pytest.approx(float(weight.std(correction=0)), rel=1e-5)
    assert found["weight"]["r2"] == pytest.approx(0, abs=1e-5)


def test_the_best_constant_of_dense_tasks() -> None:
    torch.manual_seed(0)
    parts = torch.randint(0, 3, (6, 4, 5)).clamp(max=1)
    parts[0, 0] = -100
    depth = torch.rand(6, 1, 4, 5)
    depth[:, :, 2] = torch.nan
    dense = {"parts": pt.Task.segmentation("parts", classes=2), "depth": pt.Task.pixel_regression("depth")}
    found = evaluate_constant(dense, pt.Examples(torch.zeros(6), {"parts": parts, "depth": depth}), batch_size=4)
    share = float((parts == 1).sum() / (parts >= 0).sum())
    assert found["parts"]["pixel_accuracy"] == pytest.approx(max(share, 1 - share))
    assert found["depth"]["rmse"] == pytest.approx(float(depth[~depth.isnan()].std(correction=0)), rel=1e-5)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_losses_are_means_over_labels_whatever_the_batches(size: int) -> None:
    network, data = model().eval(), examples(90)
    whole = {name: loss.item() for name, loss in network.losses(data[:]).items()}
    assert evaluate_losses(network, data, batch_size=size) == pytest.approx(whole, rel=1e-5)
    separate = {name: data.only([name]) for name in whole}
    assert evaluate_losses(network, separate, batch_size=size) == pytest.approx(whole, rel=1e-5)
    assert evaluate_losses(network, DataLoader(data, batch_size=min(size, 90))) == pytest.approx(whole, rel=1e-5)


def test_evaluation_keeps_the_mode_and_draws_nothing() -> None:
    network = model(dropout=0.5, norm=True).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    first, second = evaluate(network, examples(40)), evaluate(network, examples(40))
    assert first == second and network.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_mode_is_restored_when_the_data_fails() -> None:
    network = model().train()
    with pytest.raises(ZeroDivisionError):
        evaluate(network, (1 // 0 for _ in range(1)))
    assert network.training


def test_streams_are_no_data_to_evaluate_on() -> None:
    data = examples(40)
    with pytest.raises(InputError, match="Mixture repeats or leaves out examples"):
        evaluate(model(), pt.Mixture({"weight": data.only(["weight"])}, batch_size=8))


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    class Pair(nn.Module):
        width, members = 4, 2

        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([part(x) for part in self.parts], 1)

    torch.manual_seed(0)
    network, data = pt.Model(Pair(), tasks()), examples(40)
    singles = [pt.Model(part, tasks(), width=4) for part in network.encoder.parts]
    for single in singles:
        single.heads.load_state_dict(network.heads.state_dict())
    x = data.inputs
    for name, prediction in network.predict(x).items():
        torch.testing.assert_close(prediction, sum(s.predict(x)[name] for s in singles) / 2)
    losses = [s.losses(data[:]) for s in singles]
    for name, loss in network.losses(data[:]).items():
        torch.testing.assert_close(loss, (losses[0][name] + losses[1][name]) / 2)


def test_areas_are_means_over_the_classes_that_have_them() -> None:
    torch.manual_seed(0)
    task = pt.Task.classification("t", classes=4)
    target, logits = torch.tensor([0, 0, 1, 2, 1, 2, 0, 1]), torch.randn(8, 4)  # no label of the fourth
    metric = task.metrics()["auroc"].build()
    task.update(metric, logits.softmax(1), target)
    expected = np.mean([sk.roc_auc_score(target == c, logits.softmax(1)[:, c]) for c in range(3)])
    assert float(metric.compute()) == pytest.approx(expected)

    many = pt.Task.multilabel("t", labels=3)
    labels, scores = torch.rand(9, 3).round(), torch.rand(9, 3)
    labels[:, 1] = 0
    labels[4] = torch.nan
    rows = ~labels[:, 0].isnan()
    for name, reference in (("auroc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)):
        metric = many.metrics()[name].build()
        many.update(metric, scores, labels)
        expected = np.mean([reference(labels[rows, c], scores[rows, c]) for c in (0, 2)])
        assert float(metric.compute()) == pytest.approx(expected)
        metric = many.metrics()[name].build()
        many.update(metric, scores, torch.zeros(9, 3))
        assert math.isnan(float(metric.compute()))
