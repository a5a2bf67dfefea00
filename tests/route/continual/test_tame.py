"""TAME: special cases that are known, and streams that are easy to tell apart."""

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytask.errors import InputError, TrainingError
from polytask.route.continual import TAME, Pruning, RoutedExperts, fit_selector, sparsity

sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))


def batches(task: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tasks that contradict each other, in places of their own."""
    generator = torch.Generator().manual_seed(1000 * seed + task)
    rule = torch.randn(6, generator=generator)
    for _ in range(count):
        x = torch.randn(64, 6, generator=generator)
        y = (x @ rule > 0).long()
        yield x + 4 * nn.functional.one_hot(torch.tensor(task), 6), y


def made(**settings: Any) -> TAME:
    return TAME(network, sgd, **{"first": math.log(2), "window": 35, "buffer": 300, **settings})


def test_without_alarms_it_is_plain_training() -> None:
    stream = [batch for task in (0, 1) for batch in batches(task, 20, 0)]
    torch.manual_seed(0)
    tame = made(beta=1.0, deviations=math.inf)
    for x, y in stream:
        tame.step(x, y)
    torch.manual_seed(0)
    plain = network()
    optimizer = sgd(plain.parameters())
    for x, y in stream:
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
    assert len(tame.experts) == 1
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tame.experts[0].state_dict()[name], tensor)


@pytest.mark.parametrize("seed", range(10))
def test_a_stream_of_one_task_has_one_expert(seed: int) -> None:
    torch.manual_seed(seed)
    tame = made()
    for x, y in batches(0, 80, seed):
        tame.step(x, y)
    assert len(tame.experts) == 1


def followed(tame: TAME, order: tuple[int, ...], seed: int = 1, count: int = 60, **step: Any) -> list[int]:
    """The expert that was active at the end of each segment."""
    torch.manual_seed(seed)
    ends = []
    for place, task in enumerate(order):
        for number, (x, y) in enumerate(batches(task, count, seed)):
            told = {"shift": place > 0 and number == 0} if step.get("told") else {}
            event = tame.step(x, y, **told)
        ends.append(event.expert)
    return ends


@pytest.mark.parametrize("lazy", [False, True])
def test_experts_come_with_tasks_and_go_on_when_they_return(lazy: bool) -> None:
    tame = made(lazy=lazy)
    assert followed(tame, (0, 1, 2, 1, 3, 0)) == [0, 1, 2, 1, 3, 0]
    assert len(tame.experts) == 4
    selector = fit_selector(nn.Linear(6, 4), tame.samples(), epochs=40)
    routed = tame.routed(selector)
    for task in range(4):
        x, y = next(batches(task, 1, 1))
        assert float((routed.choose(x) == task).float().mean()) > 0.9
        assert float((routed(x).argmax(1) == y).float().mean()) > 0.8
        assert torch.equal(routed.classes(x), routed(x).argmax(1) + 2 * routed.choose(x))


def test_told_boundaries_make_an_expert_at_each() -> None:
    tame = made()
    assert followed(tame, (0, 1, 2, 0), told=True) == [0, 1, 2, 0]
    assert all(member.detector.threshold < 0.6 for member in tame.members), "thresholds follow the losses all the same"


def test_the_batch_of_an_alarm_is_not_in_the_window_and_thresholds_of_others_stay() -> None:
    tame = made()
    followed(tame, (0,))
    window, theta = list(tame.members[0].detector.losses), tame.members[0].detector.threshold
    accepted = copy.copy(tame.members[0].detector.active)
    for x, y in batches(1, 1, 7):
        event = tame.step(x + 50, y)
    assert event.alarm and event.created and event.expert == 1
    assert list(tame.members[0].detector.losses) == window and tame.members[0].detector.active == accepted
    assert list(tame.members[1].detector.losses) == [math.log(2), event.losses[1]], "the loss before training"
    frozen = tame.members[0].detector.threshold
    followed(tame, (1,), seed=3, count=5)
    assert tame.members[0].detector.threshold == frozen and frozen == pytest.approx(theta, abs=0.2)


def test_one_noisy_batch_does_not_make_an_expert() -> None:
    """The expert that was left takes part in the scan: patience lets a bad batch pass."""
    tame = made(patience=2)
    followed(tame, (0,))
    x, y = next(batches(0, 1, 5))
    before = copy.deepcopy(tame.experts[0].state_dict())
    event = tame.step(x, 1 - y)
    assert event.alarm and not event.trained and event.expert == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in tame.experts[0].state_dict().items())
    followed(tame, (0,), seed=1, count=10)
    assert len(tame.experts) == 1


def test_a_cap_on_experts() -> None:
    tame = made(most=2)
    ends = followed(tame, (0, 1, 2, 3))
    assert len(tame.experts) == 2 and set(ends) <= {0, 1}


def test_experts_are_pruned_when_they_are_left_and_stay_so() -> None:
    tame = made(pruning=Pruning(0.75, epochs=10, capacity=200))
    followed(tame, (0, 1))
    assert sparsity(tame.experts[0]) == pytest.approx(0.75, abs=0.01) and sparsity(tame.experts[1]) == 0
    kept = [mask.clone() for name, mask in tame.experts[0].named_buffers() if name.endswith("mask")]
    assert followed(tame, (0, 1)) == [0, 1]
    assert all(
        torch.equal(a, b) for a, b in zip(kept, [m for n, m in tame.experts[0].named_buffers() if "mask" in n], strict=True)
    )
    tame.finish()
    assert [round(sparsity(one), 2) for one in tame.experts] == [0.75, 0.75]
    x, y = next(batches(0, 1, 1))
    assert (
        float((tame.routed(fit_selector(nn.Linear(6, 2), tame.samples(), epochs=20))(x).argmax(1) == y).float().mean()) > 0.7
    )


def test_any_loss_and_a_schedule() -> None:
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    tame = TAME(partial(nn.Linear, 6, 3), sgd, first=1.0, loss=nn.functional.mse_loss, schedule=schedule)
    for x, _ in batches(0, 3, 0):
        tame.step(x, x[:, :3])
    assert tame.members[0].optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 8)
    assert {expert for _, expert in tame.samples()} == {0} and tame.examples()[1].shape[1:] == (3,)


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    tame = made()
    followed(tame, (0,), count=3)
    before = copy.deepcopy(tame.experts[0].state_dict())
    x, y = next(batches(0, 1, 0))
    with pytest.raises(TrainingError, match="loss of expert 0 is nan"):
        tame.step(x * math.nan, y)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tame.experts[0].state_dict().items())


def test_settings_and_experts_that_cannot_be() -> None:
    for wrong in ({"patience": 0}, {"most": 0}, {"beta": 0.0}, {"window": 0}):
        with pytest.raises(InputError, match="TAME: "):
            made(**wrong)
    with pytest.raises(InputError, match="amount 1"):
        Pruning(1)
    with pytest.raises(InputError, match="no selector"):
        RoutedExperts([network(), network()])(torch.zeros(1, 6))
    with pytest.raises(InputError, match="none, expected at least one"):
        RoutedExperts([])
    with pytest.raises(InputError, match="no samples"):
        fit_selector(nn.Linear(1, 1), [])


def test_each_input_goes_through_its_expert_and_comes_back_in_place() -> None:
    experts = [nn.Linear(6, 2) for _ in range(3)]
    routed, x = RoutedExperts(experts, nn.Linear(6, 3)), torch.randn(20, 6)
    chosen = torch.arange(20) % 3
    want = torch.stack([experts[i % 3](row) for i, row in enumerate(x)])
    torch.testing.assert_close(routed(x, chosen), want)
    assert routed(x[:0]).shape == (0, 2) and RoutedExperts(experts[:1])(x).shape == (20, 2)
