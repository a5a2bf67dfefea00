"""Training with task weights that are learned on held-out batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training import several
from tests.training.several import Stop, together
from tests.training.small import WIDTH, Noisy, encoder, examples, model, same, tasks, without_time
from torch import nn
from torch.utils.data import DataLoader

import polytask as pt
from polytask.balance.auto_lambda import AutoLambda
from polytask.balance.dwa import DWA
from polytask.balance.famo import FAMO
from polytask.balance.forum import FORUM
from polytask.balance.gradnorm import GradNorm
from polytask.balance.moml import MOML
from polytask.data import Batches, Mixture
from polytask.errors import InputError
from polytask.training import fit
from polytask.training.held_out import FIRST_EPOCH, HeldOut

METHODS: list[Any] = [lambda: AutoLambda(lr=0.01), MOML, FORUM]


def run(make: Any, train: Any, out: Path | None = None, listeners: Any = (), **given: Any) -> Any:
    network, balancer = model(dropout=0.3, norm=True), make()
    chosen: dict[str, Any] = {"steps": 14, "batch_size": 16, "evaluate_every": 4, "checkpoint_every": 2} | given
    return fit(network, train, examples(48, seed=1), **chosen, balance=balancer, out=out, listeners=listeners), balancer


@pytest.mark.parametrize("kind", ["examples", "accumulated", "loader", "mixture"])
@pytest.mark.parametrize("make", METHODS)
def test_a_run_that_is_stopped_ends_with_the_same_bits(make: Any, kind: str, tmp_path: Path) -> None:
    data: Any = examples()
    if kind == "loader":
        data = DataLoader(Noisy(data), batch_size=16, shuffle=True)
    elif kind == "mixture":
        data = Mixture({n: data.only([n]) for n in data.targets}, sampling="uniform", batch_size=16, tasks_per_step="all")
    given = {"accumulate": 2} if kind == "accumulated" else {}
    whole, weights = run(make, data, **given)
    with pytest.raises(KeyboardInterrupt):
        run(make, data, tmp_path, [Stop()], **given)
    again, resumed = run(make, data, tmp_path, **given)
    assert same(whole.model, again.model) and without_time(whole.history) == without_time(again.history)
    assert same(weights, resumed)
    fresh = make()
    fresh.prepare([task.name for task in tasks()])
    assert not same(weights, fresh)


class Calls(nn.Module):
    """A module with losses that writes down which batches it has seen, and in what mode of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.tasks = ("a", "b")
        self.seen: list[int] = []

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        self.seen.append(int(batch))
        return {"a": (self.weight[0] - 3).square(), "b": (self.weight[1] + self.weight[0]).square()}

    def shared_parameters(self) -> Any:
        yield self.weight


def test_held_out_batches_are_those_given_one_for_each_training_batch_and_no_one_hears_of_them() -> None:
    network, balancer = Calls(), AutoLambda(held_out=[100, 101, 102])
    fitted = fit(network, [0, 1, 2, 3], steps=5, balance=balancer, evaluate_every=5)
    # The training batch, a held-out batch after the virtual step, the training batch on both sides.
    assert network.seen == [0, 100, 0, 0, 1, 101, 1, 1, 2, 102, 2, 2, 3, 100, 3, 3, 0, 101, 0, 0]
    assert set(fitted.history[0]["loss"]) == {"a", "b"}
    assert balancer.watched is None


def test_the_held_out_data_decides_what_is_learned() -> None:
    ends = [run(lambda: AutoLambda(lr=0.05, held_out=data), examples())[1] for data in (None, examples(48, seed=9))]  # noqa: B023
    assert not same(*ends)


def test_a_task_of_noise_gets_no_more_weight_than_those_that_help() -> None:
    """Its labels are random: what helps it on one batch helps no other."""
    generator = torch.Generator().manual_seed(0)
    data = examples(256, missing=False)
    targets = {**data.targets, "noise": 3 * torch.randn(256, generator=generator)}
    weights = []
    for seed in range(3):
        torch.manual_seed(seed)
        network = pt.Model(encoder(), [*tasks(), pt.Task.regression("noise")], width=WIDTH)
        balancer = AutoLambda(lr=3e-3, held_out=pt.Examples(data.inputs[128:], {k: v[128:] for k, v in targets.items()}))
        train = pt.Examples(data.inputs[:128], {k: v[:128] for k, v in targets.items()})
        fit(network, train, steps=150, batch_size=32, lr=1e-2, balance=balancer, seed=seed)
        weights.append(balancer.weights.value)
    mean = dict(zip(balancer.tasks, torch.stack(weights).mean(0).tolist(), strict=True))
    assert mean["noise"] < min(mean[name] for name in ("colour", "round", "weight")), mean


# Held-out batches by number


@pytest.mark.parametrize(
    "stream", [Batches(examples(40, missing=False), 8), Mixture({"weight": examples(40, missing=False)}, batch_size=8)]
)
def test_a_batch_is_a_function_of_its_number_and_other_than_those_of_the_training(stream: Any) -> None:
    held_out = HeldOut(stream)
    found = [held_out.batch(i) for i in range(12)]
    for i in (7, 3, 11, 4, 5):
        again = HeldOut(stream).batch(i)
        torch.testing.assert_close(again, found[i])
        torch.testing.assert_close(held_out.batch(i), found[i])
    torch.testing.assert_close(list(stream.epoch(FIRST_EPOCH)), found[:5])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(next(iter(stream.epoch(0))), found[0])


class Short(list[int]):
    def __len__(self) -> int:
        return 5


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Short([0, 1]), "says that it has 5 batches, and has 2"),
        ([], "no batches, expected at least one"),
        (examples(4), "batch size 64, expected 1 to 4"),
    ],
)
def test_held_out_data_that_cannot_be(data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit(Calls(), list(range(64)), steps=4, balance=AutoLambda(held_out=data))


def test_a_loader_with_persistent_workers_is_not_read_twice_at_once() -> None:
    loader = DataLoader(examples(), batch_size=16, num_workers=1, persistent_workers=True)
    with pytest.raises(InputError, match="persistent workers cannot be read twice at once"):
        fit(model(), loader, steps=2, balance=AutoLambda())


# Several processes


def learned(rank: int, world: int, kind: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "auto_lambda": lambda: AutoLambda(lr=0.01), "moml": MOML, "forum": FORUM, "dwa": lambda: DWA(window=2), "famo": FAMO,
        "gradnorm": GradNorm,
    }  # fmt: skip
    balancer, network = made[kind](), model()
    fabric = several.several(world) if world > 1 else None
    fitted = fit(network, examples(96), steps=6, batch_size=32, balance=balancer, optimizer=several.sgd, fabric=fabric)
    return several.ended(fitted, balancer)


@pytest.mark.parametrize("kind", ["auto_lambda", "moml", "forum", "dwa", "famo", "gradnorm"])
def test_processes_keep_one_model_and_one_set_of_weights(kind: str, tmp_path: Path) -> None:
    ends = together(learned, 2, tmp_path, kind)
    for part in ("model", "balancer"):
        for name, value in ends[0][part].items():
            assert torch.equal(value.nan_to_num(), ends[1][part][name].nan_to_num()), name
    one = learned(0, 1, kind)
    if kind in ("dwa", "famo"):  # losses are those of the joined batch
        for name, value in one["balancer"].items():
            torch.testing.assert_close(value, ends[0]["balancer"][name], rtol=1e-3, atol=1e-4, equal_nan=True)
