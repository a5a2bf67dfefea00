"""Exits under attack: the networks' sizes by formula, both ways of training, EarlyAttack, and a small run of the claims."""

import math
from itertools import pairwise

import pytest
import torch
from tests.papers.real_data import folder_with
from torch import Tensor, nn

import polytask as pt
from polytask.errors import InputError
from polytask.papers.dynn_robustness import (
    PAPER,
    Normalise,
    digits,
    digits_network,
    early,
    early_attack,
    heads_for,
    milestones,
    mobilenet,
    only_exits,
    published,
    resnet56,
    train,
    train_exits,
    vgg16,
    with_exits,
)
from polytask.route import EarlyExit, early_fooled, exit_costs, exit_weights


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def classifier(channels: int, side: int, classes: int = 10) -> int:
    """The parameters of an internal classifier by formula."""
    window = side // 4
    return classes * channels * (side // window if window else side) ** 2 + classes + (window > 0)


EXITS = {
    vgg16: [(64, 16), (128, 8), (256, 8), (256, 4), (512, 4), (512, 2)],
    mobilenet: [(128, 16), (256, 8), (512, 4), (512, 4), (1024, 2)],
    resnet56: [(16, 32)] * 2 + [(32, 16)] * 2 + [(64, 8)] * 2,
}


def vgg_by_formula(classes: int) -> int:
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + b + 2 * b for a, b in pairwise(widths))
    return convolutions + 2 * (512 * 512 + 512) + 512 * classes + classes


def mobilenet_by_formula(classes: int) -> int:
    widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    blocks = sum(9 * a + 2 * a + a * b + 2 * b for a, b in pairwise(widths))
    return 27 * 32 + 64 + blocks + 1024 * classes + classes


def resnet_by_formula(classes: int) -> int:
    plain = sum(9 * (18 * c * c + 4 * c) for c in (16, 32, 64))
    stages = sum(9 * a * 2 * a - 9 * 4 * a * a + 2 * a * a + 4 * a for a in (16, 32))  # the first block, and its short cut
    return 27 * 16 + 32 + plain + stages + 64 * classes + classes


@pytest.mark.parametrize("classes", [10, 100])
def test_sizes_by_formula(classes: int) -> None:
    static = {vgg16: vgg_by_formula, mobilenet: mobilenet_by_formula, resnet56: resnet_by_formula}
    for build, by_formula in static.items():
        with torch.device("meta"):
            plain, whole = build(classes, exits=False), build(classes)
        assert size(plain) == by_formula(classes)
        heads = [classifier(*place, classes) for place in EXITS[build]]
        assert [size(head) for head in list(whole.heads)[:-1]] == heads and size(whole) == size(plain) + sum(heads)
        assert len(plain.thresholds) == 0 and whole.answer == "surest"
    assert classifier(64, 16) == 10_251


def test_exits_stand_near_15_30_45_60_75_and_90_percent_of_the_work() -> None:
    x = torch.empty(1, 3, 32, 32, device="meta")
    for build in (vgg16, resnet56):
        with torch.device("meta"):
            costs = exit_costs(build(), x)
        for cost, share in zip(costs, (0.15, 0.30, 0.45, 0.60, 0.75, 0.90), strict=False):
            assert abs(cost / costs[-1] - share) < 0.045
    with torch.device("meta"):
        assert [len(one) for one in (mobilenet().thresholds, mobilenet(100).temperatures)] == [5, 6]


def test_networks_run() -> None:
    x = torch.rand(2, 3, 32, 32)
    for build in (mobilenet, resnet56):
        every = build(7).eval()(x)
        assert {tuple(logits.shape) for logits in every} == {(2, 7)}
    normalised = Normalise([0.5, 0.0, 0.0], [0.5, 1.0, 2.0])(x)
    torch.testing.assert_close(normalised, torch.stack([(x[:, 0] - 0.5) / 0.5, x[:, 1], x[:, 2] / 2], 1))
    with pytest.raises(InputError, match="a multiple of 4"):
        digits_network(size=10)


def tiny(exits: tuple[int, ...] = (1, 3)) -> EarlyExit:
    torch.manual_seed(0)
    return digits_network(exits, size=8, widths=(4, 4, 4, 4, 4), classes=2)


def stripes(count: int = 192) -> tuple[Tensor, Tensor]:
    """Images that are bright above or below."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (count,), generator=generator)
    images = 0.35 + 0.1 * torch.randn(count, 1, 8, 8, generator=generator)
    for place in (0, 1):
        images[labels == place, :, 4 * place : 4 * place + 4] += 0.3
    return images.clamp(0, 1), labels


@pytest.fixture(scope="module")
def trained() -> EarlyExit:
    images, labels = stripes()
    return train(tiny(), pt.Examples(images, {"half": labels}), [0.3, 0.8], epochs=6, batch_size=16, lr=1e-2)


def test_weights_of_losses_rise_in_training() -> None:
    images, labels = stripes(64)
    seen: list[list[float]] = []
    network, whole = tiny(), exit_weights

    def watched(progress: float, final: list[float]) -> list[float]:
        seen.append(whole(progress, final))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polytask.papers.dynn_robustness.training.exit_weights", watched)
        train(network, pt.Examples(images, {"half": labels}), [0.3, 0.8], epochs=2, batch_size=16)
    assert seen == [whole(step / 8, [0.3, 0.8]) for step in range(8)] and not network.training


def test_training_exits_alone_changes_nothing_else(trained: EarlyExit) -> None:
    images, labels = stripes()
    data = pt.Examples(images, {"half": labels})
    static = train(tiny(()), data, epochs=4, batch_size=16, lr=1e-2)
    before = {name: tensor.clone() for name, tensor in static.state_dict().items()}
    network = with_exits(static, heads_for(list(static.blocks), (1, 3), 8, 2, channels=1))
    answers = static(images)[0]
    fresh = [head[-1].weight.clone() for head in list(network.heads)[:2]]  # type: ignore[index, union-attr, operator]
    train_exits(network, data, epochs=4, batch_size=16, lr=1e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in static.state_dict().items())
    assert torch.equal(network(images)[-1], answers)
    assert not any(torch.equal(one, head[-1].weight) for one, head in zip(fresh, network.heads, strict=False))  # type: ignore[index]
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all((one.argmax(1) == labels).float().mean() > 0.9 for one in network(images))
    network.thresholds.fill_(1.1)
    network.answer = "last"
    assert torch.equal(network.run(images).outputs, static.run(images).outputs)


def test_networks_with_some_of_their_exits(trained: EarlyExit) -> None:
    images, _ = stripes()
    trained.temperatures.copy_(torch.tensor([0.5, 0.7, 0.9]))
    some = only_exits(trained, [1])
    assert some.depths == (3, 5) and some.temperatures.tolist() == pytest.approx([0.7, 0.9]) and not some.training
    torch.testing.assert_close(some(images), trained(images)[1:])
    assert len(only_exits(trained, []).thresholds) == 0
    trained.temperatures.fill_(1.0)
    agreeing = early.rules(trained, torch.tensor([2.0, 2.0, 2.0]))
    assert trained.agree == 1 and trained.temperatures.tolist() == [1.0] * 3 and agreeing["agree"].agree == 2
    assert agreeing["calibrated"].temperatures.tolist() == [2.0] * 3 and agreeing["strict"].blocks is trained.blocks


def test_early_attack_splits_the_exits(trained: EarlyExit) -> None:
    images, _ = stripes(24)
    generator = torch.Generator().manual_seed(0)
    found = early_attack(trained, images, 0.3, steps=200, after=50, lr=0.05, generator=generator)
    said = torch.stack([one.argmax(1) for one in trained(found.images)])
    clean = trained(images)[-1].argmax(1)
    success = (said[:-1] != clean).all(0) & (said[-1] == clean)
    assert torch.equal(success, found.reached) and torch.equal(early_fooled(trained, images, found.images), success)
    assert success.float().mean() > 0.3 and not early_fooled(trained, images, images).any()
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert (found.cost[success] > 50).all() and (found.cost[~success] == 200).all()


def test_alpha_0_lets_the_last_exit_go(trained: EarlyExit) -> None:
    images, _ = stripes(24)
    loose = early_attack(trained, images, 0.0, steps=60, after=60, lr=0.05, generator=torch.Generator().manual_seed(0))
    held = early_attack(trained, images, 5.0, steps=60, after=60, lr=0.05, generator=torch.Generator().manual_seed(0))
    clean = trained(images)[-1].argmax(1)
    right = [(trained(found.images)[-1].argmax(1) == clean).float().mean() for found in (loose, held)]
    assert right[0] < right[1]


def test_the_papers_settings() -> None:
    settings = published(1e-4)
    optimizer = settings["optimizer"]([{"params": [nn.Parameter(torch.zeros(1))]}])
    assert {k: optimizer.defaults[k] for k in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4
    }  # fmt: skip
    schedule = settings["schedule"](optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates.count(rate) for rate in sorted(set(rates), reverse=True)] == [35, 25, 25, 15]
    halves = milestones(0.5)(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 10)
    assert dict(halves.milestones) == {5: 1}
    images, labels = stripes(64)
    train(tiny(), pt.Examples(images, {"half": labels}), [0.3, 0.8], epochs=1, batch_size=32, **settings)


@pytest.mark.soak
def test_a_small_run_of_the_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder_with(digits.FILES)
    small = {"TRAIN": 1000, "HELD": 300, "TEST": 300, "EPOCHS": 1, "STEPS": 2, "ATTACKED": 10, "EARLY": 4, "CHOICE": 2}
    for name, value in small.items():
        monkeypatch.setattr(digits, name, value)
    monkeypatch.setattr(early, "STEPS", 3)
    measured = digits.measure(0, data)
    assert all(math.isfinite(value) for value in measured.values())
    assert all({claim.method, claim.baseline} <= set(measured) for claim in PAPER.claims)
    assert measured["sdn early"] == measured["sdn noise"] == 0.0  # no point of the first 200 steps counts
    assert measured["static to static"] >= measured["static to static2"] - 50
    assert measured["sdn saved last"] == 0.0 and measured["sdn saved agree"] <= measured["sdn saved exits"] + 1e-6
    assert PAPER.plot is not None and PAPER.plot({0: measured, 1: measured}).axes
