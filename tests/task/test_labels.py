"""Label kinds: losses by hand, metrics by scikit-learn, and missing labels that count nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor

from polytask import InputError, Task
from polytask.task import MISSING
from polytask.task.labels import CumulativeLogits


def measured(task: Task, prediction: Tensor, target: Tensor, name: str) -> float:
    metric = task.metrics()[name].build()
    for rows in torch.arange(len(target)).split(7):  # in pieces, as an evaluation does
        task.update(metric, prediction[rows], target[rows])
    return float(metric.compute())


def scores(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestBinary:
    task = Task.binary("t")
    target = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, torch.nan, 1, torch.nan, 0])

    def test_loss_is_the_mean_logistic_loss_of_known_labels(self) -> None:
        output = scores((12, 1))
        known = ~self.target.isnan()
        expected = F.softplus(torch.where(self.target == 1, -output[:, 0], output[:, 0]))[known].mean()
        assert self.task.loss(output, self.target) == pytest.approx(expected.item())

    def test_positive_weight_multiplies_the_loss_of_positives(self) -> None:
        output, weighted = scores((12, 1)), Task.binary("t", positive_weight=3.0)
        each = F.softplus(torch.where(self.target == 1, -output[:, 0], output[:, 0]))
        expected = torch.where(self.target == 1, 3 * each, each)[~self.target.isnan()].mean()
        assert weighted.loss(output, self.target) == pytest.approx(expected.item())

    def test_balanced_weight_is_negatives_over_positives(self) -> None:
        assert Task.binary("t", positive_weight="balanced").fitted(self.target).settings()["positive_weight"] == 1.0
        with pytest.raises(InputError, match="expected both"):
            Task.binary("t", positive_weight="balanced").fitted(torch.ones(3))
        with pytest.raises(InputError, match="call task"):
            Task.binary("t", positive_weight="balanced").loss(torch.zeros(1, 1), torch.ones(1))

    @pytest.mark.parametrize(
        ("name", "reference"),
        [
            ("auroc", sk.roc_auc_score),
            ("average_precision", sk.average_precision_score),
            ("log_loss", sk.log_loss),
            ("accuracy", lambda y, p: sk.accuracy_score(y, p > 0.5)),
            ("f1", lambda y, p: sk.f1_score(y, p > 0.5)),
        ],
    )
    def test_metrics_are_those_of_scikit_learn(self, name: str, reference: object) -> None:
        prediction = self.task.decode(scores((12, 1)))
        known = ~self.target.isnan()
        expected = reference(self.target[known].numpy(), prediction[known].numpy())  # type: ignore[operator]
        assert measured(self.task, prediction, self.target, name) == pytest.approx(expected, abs=1e-6)

    def test_table_names_the_classes(self) -> None:
        table = Task.binary("t", classes=["stays", "leaves"]).table(torch.tensor([0.2, 0.9]))
        assert table["t"] == ["stays", "leaves"]
        assert table["t_probability"] == pytest.approx(np.array([0.2, 0.9]))


class TestClassification:
    task = Task.classification("t", classes=3)
    target = torch.tensor([0, 1, 2, 2, 1, MISSING, 0, 1, 2, 0, 0, MISSING])

    @pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
    def test_loss_is_torchs_on_known_labels(self, weights: list[float] | None) -> None:
        output, known = scores((12, 3)), self.target != MISSING
        expected = F.cross_entropy(output[known], self.target[known], None if weights is None else torch.tensor(weights))
        task = Task.classification("t", classes=3, class_weights=weights)
        assert task.loss(output, self.target) == pytest.approx(expected.item())

    def test_label_smoothing_is_torchs(self) -> None:
        output, known = scores((12, 3)), self.target != MISSING
        expected = F.cross_entropy(output[known], self.target[known], label_smoothing=0.1)
        task = Task.classification("t", classes=3, label_smoothing=0.1)
        assert task.loss(output, self.target) == pytest.approx(expected.item())

    def test_balanced_weights_are_scikit_learns(self) -> None:
        from sklearn.utils.class_weight import compute_class_weight

        labels = self.target[self.target != MISSING].numpy()
        expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
        fitted = Task.classification("t", classes=3, class_weights="balanced").fitted(self.target)
        assert fitted.settings()["class_weights"] == pytest.approx(expected)
        with pytest.raises(InputError, match="no training label of class '2'"):
            Task.classification("t", classes=3, class_weights="balanced").fitted(torch.tensor([0, 1]))

    @pytest.mark.parametrize(
        ("name", "reference"),
        [
            ("accuracy", lambda y, p: sk.accuracy_score(y, p.argmax(1))),
            ("f1", lambda y, p: sk.f1_score(y, p.argmax(1), average="macro")),
            ("auroc", lambda y, p: sk.roc_auc_score(y, p, multi_class="ovr")),
            ("log_loss", sk.log_loss),
        ],
    )
    def test_metrics_are_those_of_scikit_learn(self, name: str, reference: object) -> None:
        prediction, known = self.task.decode(scores((12, 3))), self.target != MISSING
        expected = reference(self.target[known].numpy(), prediction[known].numpy())  # type: ignore[operator]
        assert measured(self.task, prediction, self.target, name) == pytest.approx(expected, abs=1e-6)


class TestOrdinal:
    task = Task.ordinal("t", classes=4)
    target = torch.tensor([0, 1, 2, 3, 3, MISSING, 0, 1])

    def output(self, rows: int = 8, scale: float = 1.0) -> Tensor:
        torch.manual_seed(0)
        head = CumulativeLogits(5, 4)
        result: Tensor = head(scale * scores((rows, 5)))
        return result

    def test_probabilities_are_positive_and_sum_to_one(self) -> None:
        probabilities = self.task.decode(self.output())
        assert (probabilities > 0).all()
        assert torch.allclose(probabilities.sum(1), torch.ones(8))

    def test_loss_is_minus_the_log_probability_of_the_label(self) -> None:
        output, known = self.output(), self.target != MISSING
        chosen = self.task.decode(output).gather(1, self.target.clamp(min=0)[:, None])[:, 0]
        loss = self.task.loss(output, self.target)
        assert loss.item() == pytest.approx(-chosen[known].log().mean().item(), rel=1e-5)

    def test_loss_and_gradient_are_finite_far_from_the_label(self) -> None:
        output = self.output(scale=1e4).detach().requires_grad_()
        loss = self.task.loss(output, self.target)
        loss.backward()
        assert loss.isfinite() and output.grad is not None and output.grad.isfinite().all()

    @given(st.lists(st.floats(-20, 20), min_size=2, max_size=2), st.floats(-20, 20))
    def test_thresholds_stay_ordered_whatever_the_parameters(self, gaps: list[float], first: float) -> None:
        head = CumulativeLogits(5, 4)
        head.gaps.data, head.first.data = torch.tensor(gaps), torch.tensor([first])
        logits = head(torch.zeros(1, 5))[0]
        assert (logits[:-1] >= logits[1:]).all()

    @pytest.mark.parametrize(
        ("name", "reference"),
        [
            ("kappa", lambda y, p: sk.cohen_kappa_score(y, p, weights="quadratic")),
            ("mae", sk.mean_absolute_error),
            ("accuracy", sk.accuracy_score),
        ],
    )
    def test_metrics_are_of_the_median_label(self, name: str, reference: object) -> None:
        prediction, known = self.task.decode(self.output(scale=3)), self.target != MISSING
        median = (prediction.detach().cumsum(1) < 0.5).sum(1)
        expected = reference(self.target[known].numpy(), median[known].numpy())  # type: ignore[operator]
        assert measured(self.task, prediction.detach(), self.target, name) == pytest.approx(expected, abs=1e-6)


class TestMultilabel:
    task = Task.multilabel("t", labels=["a", "b"])
    target = torch.tensor([[0, 1], [1, torch.nan], [1, 0], [0, 1], [torch.nan, torch.nan], [1, 1], [0, 0]])

    def test_loss_is_over_known_entries(self) -> None:
        output, known = scores((7, 2)), ~self.target.isnan()
        expected = F.binary_cross_entropy_with_logits(output[known], self.target[known])
        assert self.task.loss(output, self.target) == pytest.approx(expected.item())
        assert self.task.count(self.target) == known.sum()

    @pytest.mark.parametrize(
        ("name", "reference"), [("auroc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)]
    )
    def test_metrics_are_the_mean_over_labels_of_their_known_rows(self, name: str, reference: object) -> None:
        prediction, known = self.task.decode(scores((7, 2))), ~self.target.isnan()
        each = [
            reference(self.target[known[:, i], i].numpy(), prediction[known[:, i], i].numpy())  # type: ignore[operator]
            for i in range(2)
        ]
        assert measured(self.task, prediction, self.target, name) == pytest.approx(np.mean(each), abs=1e-6)
