"""All configurations at once: what the losses are, where their gradients go, and that `fit` trains them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.share.slimmable.networks import TASKS, batch, supernet
from torch import Tensor

import polytask as pt
from polytask import InputError
from polytask.model import Losses
from polytask.share.slimmable import Configuration, Sandwich, Supernet, output_distance, representation_distance


def by_hand(network: Supernet, configurations: list[Configuration], distil: str | None, beta: float) -> dict[str, Tensor]:
    x, targets = batch()
    teacher, taught = network.encoder(x), network(x)
    losses = {task.name: task.loss(taught[task.name], targets[task.name]) for task in TASKS}
    for configuration in configurations:
        outputs = network(x, configuration)
        for task in TASKS:
            distance: Any = 0.0
            if distil == "representation":
                distance = representation_distance(network.encoder(x, configuration.encoder), teacher) / len(TASKS)
            if distil == "outputs":
                distance = output_distance(task, outputs[task.name], taught[task.name])
            losses[task.name] = losses[task.name] + task.loss(outputs[task.name], targets[task.name]) + beta * distance
    return losses


@pytest.mark.parametrize("per_stage", [False, True])
@pytest.mark.parametrize("distil", ["representation", "outputs", None])
def test_losses_are_those_of_the_largest_two_random_and_the_smallest(distil: Any, per_stage: bool) -> None:
    network = supernet(per_stage=per_stage)
    sandwich = Sandwich(network, distil, beta=0.7)
    assert isinstance(sandwich, Losses) and list(sandwich.tasks) == ["classes", "edge", "depth"]
    torch.manual_seed(0)
    drawn = [network.sample(), network.sample()]
    torch.manual_seed(0)
    torch.testing.assert_close(sandwich.losses(batch()), by_hand(network, [*drawn, network.smallest], distil, 0.7))
    alone = Sandwich(network, distil, samples=0).losses(batch())
    torch.testing.assert_close(alone, by_hand(network, [network.smallest], distil, 1.0))


def test_encoders_that_are_alike_run_once() -> None:
    network = supernet(widths=(1.0,))
    ran: list[int] = []
    network.encoder.register_forward_hook(lambda *_: ran.append(1))
    losses = Sandwich(network, samples=3).losses(batch())
    assert len(ran) == 1
    x, targets = batch()
    for task in TASKS:  # five times the largest configuration, and no distance from itself
        torch.testing.assert_close(losses[task.name], 5 * task.loss(network(x)[task.name], targets[task.name]))


def test_distillation_of_the_largest_is_nothing_and_the_teacher_gets_no_gradient_of_it() -> None:
    network, (x, _) = supernet(), batch()
    teacher, same = network.encoder(x), network.encoder(x)
    distance = representation_distance(same, teacher)
    distance.backward()
    assert distance == 0 and all(p.grad is None or not p.grad.any() for p in network.parameters())
    # Of the smallest encoder it reaches the smallest encoder's weights alone, and no decoder's.
    representation_distance(network.encoder(x, 0.25), network.encoder(x)).backward()
    weight: Any = network.encoder[3].weight
    assert bool(weight.grad[:16, :8].any()) and not weight.grad[16:].any() and not weight.grad[:, 8:].any()
    assert all(p.grad is None for p in network.decoders.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_on_the_smallest_moves_nothing_outside_its_slices(optimizer: Any) -> None:
    network, (x, targets) = supernet(), batch()
    before = copy.deepcopy(network.state_dict())
    step = optimizer(network.parameters(), lr=0.1)
    sum(task.loss(network(x, network.smallest)[task.name], targets[task.name]) for task in TASKS).backward()  # type: ignore
    step.step()
    moved = 0
    parts = {"encoder": network.encoder, **{f"decoders.{task}": network.decoders[task] for task in network.tasks}}
    for prefix, chain in parts.items():
        for key, small in chain.extract(0.25).state_dict().items():
            old, new = before[f"{prefix}.{key}"], network.state_dict()[f"{prefix}.{key}"]
            inside = tuple(slice(size) for size in small.shape)
            assert torch.equal(small, new[inside])
            moved += int((new[inside] != old[inside]).sum())
            new = new.clone()
            new[inside] = old[inside]
            assert torch.equal(new, old), f"{prefix}.{key} moved outside"
    assert moved > 0


def test_missing_labels_and_absent_tasks() -> None:
    sandwich = Sandwich(supernet())
    x, targets = batch()
    void = {**targets, "classes": torch.full_like(targets["classes"], -100), "edge": targets["edge"].clone()}
    void["edge"][:, :4] = torch.nan
    losses = sandwich.losses((x, void))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None or p.grad.isfinite().all() for p in sandwich.parameters())
    counts = sandwich.label_counts((x, void))
    assert {name: int(count) for name, count in counts.items()} == {"classes": 0, "edge": 128, "depth": 512}
    torch.manual_seed(0)
    some = sandwich.losses((x, {"depth": targets["depth"]}))
    torch.manual_seed(0)
    each = sandwich.losses({"depth": (x, targets["depth"])})
    assert list(some) == list(each) == ["depth"] and torch.equal(some["depth"], each["depth"])
    both = sandwich.losses({name: (x, target) for name, target in targets.items()})
    assert list(both) == ["classes", "edge", "depth"] and sandwich.losses((x, {})) == {}
    assert set(sandwich.label_counts({"edge": (x, void["edge"])})) == {"edge"}


def test_evaluation_is_of_both_ends_draws_nothing_and_distils_nothing() -> None:
    network = supernet()
    sandwich, state = Sandwich(network).eval(), torch.get_rng_state()
    torch.testing.assert_close(sandwich.losses(batch()), by_hand(network, [network.smallest], None, 0.0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("balance", ["equal", "uncertainty", "cagrad"])
def test_fit_trains_every_width(balance: str) -> None:
    network = supernet()
    x, targets = batch(32)
    data = pt.Examples(x, targets)

    def loss() -> float:
        return sum(map(float, Sandwich(network).eval().losses((x, targets)).values()))

    before = loss()
    fitted = pt.fit(Sandwich(network), data, data, steps=15, batch_size=16, lr=1e-2, balance=balance, evaluate_every=5)
    assert loss() < 0.95 * before and fitted.score == pytest.approx(-loss(), rel=1e-4)


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    data = pt.Examples(*batch(16))
    settings: dict[str, Any] = {"batch_size": 8, "lr": 1e-2, "schedule": "constant", "checkpoint_every": 3}
    whole = supernet()
    pt.fit(Sandwich(whole), data, steps=6, **settings)

    class Stopped(Exception):
        pass

    class Stop:
        def step(self, step: int, losses: Any) -> None:
            if step == 4:
                raise Stopped

        def record(self, record: Any) -> None: ...
        def close(self) -> None: ...

    with pytest.raises(Stopped):
        pt.fit(Sandwich(supernet()), data, steps=6, out=tmp_path, listeners=[Stop()], **settings)
    again = supernet()
    pt.fit(Sandwich(again), data, steps=6, out=tmp_path, **settings)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())


def test_batch_norms_train_beside_distillation() -> None:
    torch.manual_seed(0)
    nn = torch.nn
    encoder = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 1))
    decoders = {"edge": nn.Sequential(nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 1))}
    for kind in ("switchable", "recalibrated"):
        network = Supernet(encoder, decoders, TASKS[1:2], batch_norm=kind)  # type: ignore[arg-type]
        losses = Sandwich(network).losses((batch()[0], {"edge": batch()[1]["edge"]}))
        losses["edge"].backward()
        assert all(p.grad is not None for p in network.shared_parameters() if p.ndim > 1)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="distil 'features', expected 'representation', 'outputs' or None"):
        Sandwich(supernet(), "features")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"beta -1\.0 and 2 samples, expected neither below 0"):
        Sandwich(supernet(), beta=-1.0)
    with pytest.raises(InputError, match="compare 'relations': did you mean 'relation'"):
        Sandwich(supernet(), compare="relations")
