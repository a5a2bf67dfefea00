"""The shared suites find what is wrong: each broken method below keeps all promises but one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import polytask as pt
from polytask.balance import Backward, Balancer, Equal, LossWeighting, Uncertainty
from polytask.share import MMoE, Pathway, Sharing
from polytask.task import MetricSpec
from polytask.testing import check_balancer, check_sharing, check_task


class Mean(LossWeighting):
    scale = "mean"

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack(list(losses.values())).mean()


class Momentum(LossWeighting):
    """Weighs tasks by a running mean of their losses, kept in a buffer."""

    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        self.register_buffer("mean", torch.ones(len(tasks)))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        mean: Tensor = self.mean  # type: ignore[assignment]
        for name, loss in losses.items():
            k = self.tasks.index(name)
            mean[k] = 0.5 * mean[k] + 0.5 * loss.detach()
        return torch.stack([loss / mean[self.tasks.index(name)].sqrt().clone() for name, loss in losses.items()]).sum()


class RandomWeights(LossWeighting):
    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return (torch.rand(len(losses)).softmax(0) * len(losses) * torch.stack(list(losses.values()))).sum()


class Normalised(Balancer):
    """Steps of length 1 along the summed gradient of the shared parameters."""

    scale = "own"

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], backward: Backward) -> None:
        before = [None if p.grad is None else p.grad.clone() for p in shared]
        for p in shared:
            p.grad = None
        backward(torch.stack(list(losses.values())).sum())
        own = [p for p in shared if p.grad is not None]
        norm = torch.cat([p.grad.flatten() for p in own if p.grad is not None]).norm()
        for p, old in zip(shared, before, strict=True):
            if p.grad is not None:
                p.grad = p.grad / norm + (0 if old is None else old)


@pytest.mark.parametrize("make", [Mean, Momentum, RandomWeights, Normalised])
def test_sound_balancers_pass(make: type[Balancer]) -> None:
    if make is Normalised:  # one task alone is trained with another step on the shared parameters alone
        with pytest.raises(AssertionError, match="one task alone"):
            check_balancer(make)
    else:
        check_balancer(make)


class SumCalledMean(Equal):
    scale = "mean"


class MeanCalledSum(Mean):
    scale = "sum"


class Swapped(Uncertainty):
    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        s = self.log_variance[: len(losses)]
        return (torch.exp(-s) * torch.stack(tuple(losses.values())) + s / 2).sum()


class Replaces(Balancer):
    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], backward: Backward) -> None:
        for p in shared:
            p.grad = None
        backward(torch.stack(list(losses.values())).sum())


class Forgets(Momentum):
    def prepare(self, tasks: Sequence[str]) -> None:
        super().prepare(tasks)
        self.register_buffer("mean", torch.ones(len(tasks)), persistent=False)


class Remembers(Momentum):
    def prepare(self, tasks: Sequence[str]) -> None:
        if not hasattr(self, "mean") or len(self.mean) != len(tasks):  # type: ignore[arg-type]
            super().prepare(tasks)


class Drops(Equal):
    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return next(iter(losses.values()))


class Explodes(Equal):
    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return (-super().combine(losses)).sqrt()


class Moves(Equal):
    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter], backward: Backward) -> None:
        super().backward(losses, shared, backward)
        shared[0].data += 1


class Crashes(LossWeighting):
    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([losses[name] for name in self.tasks]).sum()


class Backwards(Equal):
    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return -super().combine(losses)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (SumCalledMean, "for scale 'mean'"),
        (MeanCalledSum, "for scale 'sum'"),
        (Swapped, "another order of the losses"),
        (Replaces, "expected them to be added"),
        (Forgets, "state_dict does not hold"),
        (Remembers, "prepare does not start afresh"),
        (Drops, "has no gradient"),
        (Explodes, "not finite"),
        (Moves, "moved the model"),
        (Backwards, "cosine -1.00000 with the plain gradient"),
        (nn.Identity, "is no polytask.balance.Balancer"),
    ],
)
def test_broken_balancers_are_found(make: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_balancer(make)


def test_a_balancer_that_needs_every_task_is_found() -> None:
    with pytest.raises(KeyError):
        check_balancer(Crashes)


@dataclass(frozen=True)
class Towers(Sharing):
    """A linear layer for all tasks, then one for each; ``fault`` breaks one promise."""

    name: ClassVar[str] = "towers"
    fault: str = ""

    def build(self, width: int, tasks: Sequence[str]) -> Pathway:
        return TowersPathway(width, tasks, self.fault)

    def settings(self) -> dict[str, Any]:
        return {} if self.fault == "settings" else super().settings()


class TowersPathway(Pathway):
    def __init__(self, width: int, tasks: Sequence[str], fault: str) -> None:
        super().__init__()
        self.common = nn.Linear(width, width)
        self.towers = nn.ModuleList([nn.Linear(width, width) for _ in tasks])
        self.tasks, self.fault = tuple(tasks), fault
        self.noise = torch.randn(width) if fault == "unsaved" else torch.zeros(width)

    def forward(self, features: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        common = self.common(features) + self.noise
        if self.fault == "flat":
            common = common.flatten(0, -2)
        if self.fault == "batch":
            common = common - common.mean(0)
        if self.fault == "rows":
            common = common - common.flatten(0, -2).mean(0)
        if self.fault == "company":
            common = common * len(tasks)
        names = self.tasks if self.fault in ("waste", "leak", "all") else tasks
        outputs = {name: self.towers[self.tasks.index(name)](common) for name in names}
        if self.fault == "leak":
            total = torch.stack(list(outputs.values())).sum(0)
            outputs = {name: output + 1e-3 * total for name, output in outputs.items()}
        return outputs if self.fault == "all" else {name: outputs[name] for name in tasks}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.common.parameters()
        if self.fault == "twice":
            yield self.towers[0].weight  # type: ignore[misc]

    def parameters_of(self, task: str) -> Iterator[nn.Parameter]:
        parameters = list(self.towers[self.tasks.index(task)].parameters())
        yield from parameters[1:] if self.fault == "lost" else parameters


def test_sound_sharings_pass() -> None:
    check_sharing(Towers)
    check_sharing(partial(MMoE, experts=2))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("settings", "do not build the sharing"),
        ("flat", "come out as"),
        ("batch", "a dimension in the middle changes values"),
        ("rows", "depends on the rows beside it"),
        ("company", "alone is not what it is among others"),
        ("waste", "which only another task uses"),
        ("leak", "which only another task uses|reaches another task's parameters"),
        ("all", "asked for 'left', got"),
        ("twice", "belongs to shared and to left"),
        ("lost", "are neither shared nor any task's"),
        ("unsaved", "do not survive a round trip"),
    ],
)
def test_broken_sharings_are_found(fault: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_sharing(lambda: Towers(fault))


TARGET = torch.tensor([0.0, 1.0, 2.0, 5.0, 1.0, 0.0, 3.0, 2.0, 1.0, 4.0])


class Counts(pt.Task):
    """Counts of events: a Poisson rate on a logarithmic scale."""

    kind = "event_counts"
    fault = ""

    def head(self, width: int) -> nn.Module:
        return nn.Linear(width, 1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        present = self.present(target)
        losses = output.squeeze(1).exp() - torch.nan_to_num(target) * output.squeeze(1)
        if self.fault == "counts missing":
            return torch.where(present, losses, 0).mean()
        if self.fault == "sums":
            return torch.where(present, losses, 0).sum()
        if self.fault == "nan":
            return losses[present].mean()
        return torch.where(present, losses, 0).sum() / present.sum().clamp(min=1)

    def decode(self, output: Tensor) -> Tensor:
        return output.squeeze(1).exp()

    def metrics(self) -> Mapping[str, MetricSpec]:
        from torchmetrics import MeanAbsoluteError

        return {"mae": MetricSpec(MeanAbsoluteError, False)}

    def update(self, metric: Any, prediction: Tensor, target: Tensor) -> None:
        if self.fault == "measures missing":
            metric.update(prediction, torch.nan_to_num(target))
        else:
            super().update(metric, prediction, target)

    def constant(self, target: Tensor) -> Tensor:
        return target.nanmean().reshape(1)

    def names(self) -> list[str]:
        return ["a", "b"] if self.fault == "names" else super().names()

    def table(self, prediction: Tensor) -> dict[str, Any]:
        return {self.name: prediction.numpy()}

    def settings(self) -> dict[str, Any]:
        return {} if self.fault == "forgets its metric" else super().settings()


@pytest.fixture
def counts() -> Iterator[type[Counts]]:
    """The kind, known by its name during one test."""
    yield Counts
    Counts.fault = ""


NUMBERS = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
KINDS = {
    "binary": (pt.Task.binary("t"), torch.arange(12.0) % 2),
    "binary weighted": (pt.Task.binary("t", positive_weight=3), torch.arange(12.0) % 2),
    "classification": (pt.Task.classification("t", classes=3), torch.arange(12) % 3),
    "classification weighted": (
        pt.Task.classification("t", classes=3, class_weights=[1, 2, 0.5], label_smoothing=0.1),
        torch.arange(12) % 3,
    ),
    "multilabel": (pt.Task.multilabel("t", labels=2), (NUMBERS > 0).float()),
    "ordinal": (pt.Task.ordinal("t", classes=4), torch.arange(12) % 4),
    "regression": (pt.Task.regression("t"), NUMBERS[:, 0]),
    "regression scaled": (pt.Task.regression("t", outputs=2, robust="huber", scale=((1, 2), (3, 4))), 3 * NUMBERS),
    "segmentation": (pt.Task.segmentation("t", classes=3), torch.arange(12 * 16).reshape(12, 4, 4) % 3),
    "pixel_binary": (pt.Task.pixel_binary("t"), (torch.arange(12.0 * 16) % 3 > 1).float().reshape(12, 4, 4)),
    "pixel_regression": (pt.Task.pixel_regression("t", outputs=2), torch.arange(12.0 * 32).sin().reshape(12, 2, 4, 4)),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_keeps_the_contract(name: str) -> None:
    task, target = KINDS[name]
    dense = task.kind in ("segmentation", "pixel_binary", "pixel_regression")
    check_task(task, target, torch.randn(12, 5, 2, 2) if dense else None)


def test_no_kind_is_left_out() -> None:
    assert {kind for kind, cls in pt.Task.kinds.items() if cls.__module__.startswith("polytask.")} <= set(KINDS)


def test_a_sound_kind_passes(counts: type[Counts]) -> None:
    check_task(counts("events"), TARGET)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("counts missing", "the loss counts rows without a label"),
        ("sums", "do not make the whole's"),
        ("nan", "without any label"),
        ("measures missing", "metric mae: .* it counts rows without a label"),
        ("names", "names\\(\\) says"),
    ],
)
def test_a_broken_kind_is_found(fault: str, words: str, counts: type[Counts]) -> None:
    counts.fault = fault
    with pytest.raises(AssertionError, match=words):
        check_task(counts("events"), TARGET)


def test_a_kind_of_ones_own_trains_is_evaluated_and_saved(counts: type[Counts]) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    rate = (x @ torch.tensor([0.5, -0.3, 0.2, 0.0])).exp()
    events = torch.poisson(rate)
    events[::5] = torch.nan
    data = pt.Examples(x, {"events": events, "big": (rate > 1).float()})
    model = pt.Model(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), [counts("events"), pt.Task.binary("big")], width=8)
    fitted = pt.fit(model, data, data, steps=200, batch_size=50, lr=1e-2)
    constant = float((events - events.nanmean()).abs().nanmean())
    assert fitted.metrics["events"]["mae"] < 0.95 * constant
    with torch.no_grad():
        mae = float((model.predict(x)["events"] - events).abs().nanmean())
    assert pt.evaluate(model, data)["events"]["mae"] == pytest.approx(mae, rel=1e-5)
    assert pt.Task.of_kind("event_counts", "events") == model.tasks["events"]
    with pytest.raises(pt.InputError, match="unknown metric 'mea' for event_counts: did you mean 'mae'"):
        counts("events", metric="mea")
    with pytest.raises(pt.InputError, match="unknown kind 'event_count': did you mean 'event_counts'"):
        pt.Task.of_kind("event_count", "events")
