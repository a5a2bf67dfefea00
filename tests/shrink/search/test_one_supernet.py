"""One run on a super-network: what a step computes, what is learned, and that a killed run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.several import together
from torch import Tensor, nn

import polytask as pt
from polytask.errors import InputError
from polytask.model import Losses
from polytask.shrink.search import Distributions, Goal, MultiTaskReinforce, OneRun, Space, Validated, choose

SPACE = Space({"first": [False, True], "second": [False, True]})


class Switched(nn.Module):
    """Two blocks that may be skipped, and a head for each task; it notes its passes."""

    def __init__(self, tasks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({name: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for name in SPACE.names})
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(tasks))
        self.seen: list[dict[str, Any]] = []

    def losses(self, batch: Any, configuration: dict[str, Any]) -> dict[str, Tensor]:
        x, targets = batch
        self.seen.append(configuration)
        for name, block in self.blocks.items():
            x = x + block(x) if configuration[name] else x
        return {
            f"task{t}": (head(x)[:, 0] - targets[f"task{t}"]).square().mean()
            for t, head in enumerate(self.heads)
            if f"task{t}" in targets
        }

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.blocks.parameters()


def examples(tasks: int = 2, count: int = 64) -> pt.Examples:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return pt.Examples(x, {f"task{t}": x[:, t % 4] + x[:, (t + 1) % 4] for t in range(tasks)})


def one_run(tasks: int = 2, samples: int = 4, **settings: Any) -> OneRun:
    torch.manual_seed(0)
    goals = {f"task{t}": Goal(f"task{t}", "lower") for t in range(tasks)}
    return OneRun(Switched(tasks), MultiTaskReinforce(Distributions(SPACE, goals), samples=samples), goals, **settings)


@pytest.mark.parametrize("tasks", [1, 2, 10])
def test_a_step_is_one_forward_pass_whatever_the_number_of_tasks(tasks: int) -> None:
    run = one_run(tasks)
    passes: list[int] = []
    run.network.blocks["first"].register_forward_hook(lambda *_: passes.append(1))
    for _ in range(6):
        before = len(run.network.seen)
        assert len(run.losses(examples(tasks)[:16])) == tasks
        assert len(run.network.seen) == before + 1
    assert len(passes) == sum(configuration["first"] for configuration in run.network.seen)
    assert isinstance(run, Losses)


def test_losses_are_weighed_by_the_ratio_of_each_task() -> None:
    run, plain = one_run(), one_run(weigh=False)
    for each in (run, plain):
        each.reinforce.distributions.move(torch.tensor([[2.0, 0.0], [0.0, 2.0]])[:, None].expand(-1, 2, -1))
        losses = []
    for each in (run, plain):
        torch.manual_seed(1)
        losses.append(each.losses(examples()[:16]))
    weighed, bare = losses
    assert run.network.seen == plain.network.seen
    ratios = run.reinforce.ratios(SPACE.row(run.network.seen[0])[None])[:, 0]
    for ratio, (name, loss) in zip(ratios, bare.items(), strict=True):
        assert weighed[name].item() == pytest.approx(ratio.item() * loss.item())
    assert ratios.sum().item() == pytest.approx(2)


def test_weights_are_warmed_up_first_and_then_batches_are_learned_from() -> None:
    run = one_run(warm_up=3)
    logits = run.reinforce.distributions.logits
    for call in range(1, 12):
        run.losses(examples()[:16])
        assert int(run.reinforce.updates) == max(0, call - 3) // 4
        assert bool(logits.any()) == (call >= 7)


def test_a_batch_is_learned_from_as_it_was_seen() -> None:
    """The losses and the costs of the calls, in order, reach the update."""
    goals = {f"task{t}": Goal(f"task{t}", "lower", cost="parts", target=0.5, weight=1.0) for t in range(2)}
    settings: dict[str, Any] = {"costs": lambda c: {"parts": float(sum(c.values()))}}
    torch.manual_seed(0)
    run = OneRun(Switched(), MultiTaskReinforce(Distributions(SPACE, goals), samples=4), goals, weigh=False, **settings)
    losses = [[loss.item() for loss in run.losses(examples()[:16]).values()] for _ in range(4)]
    alone = MultiTaskReinforce(Distributions(SPACE, goals), samples=4)
    rows = np.stack([SPACE.row(configuration) for configuration in run.network.seen])
    parts = rows.sum(1)[:, None].repeat(2, 1)
    alone.update(rows, -np.array(losses), np.maximum(0, parts / 0.5 - 1))
    torch.testing.assert_close(run.reinforce.distributions.logits, alone.distributions.logits)
    assert int(run.waiting.held) == 0


def test_a_task_without_labels_in_a_batch_is_left_out() -> None:
    run = one_run(samples=2)
    inputs, targets = examples()[:16]
    for _ in range(2):
        assert list(run.losses((inputs, {"task1": targets["task1"]}))) == ["task1"]
    assert run.reinforce.skipped.tolist() == [1, 0]


def test_in_evaluation_mode_each_task_has_its_most_probable_network() -> None:
    run = one_run().eval()
    run.reinforce.distributions.move(torch.tensor([[[0.0, 1], [1, 0]], [[1, 0], [0, 1]]]))
    batch = examples()[:16]
    losses = run.losses(batch)
    chosen = [{"first": True, "second": False}, {"first": False, "second": True}]
    assert run.network.seen == chosen and int(run.calls) == 0
    for t, configuration in enumerate(chosen):
        assert losses[f"task{t}"] == run.network.losses(batch, configuration)[f"task{t}"]


def test_a_run_that_stopped_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Distributions, statistics, and samples that wait for their batch to be whole are in the checkpoint."""
    settings: dict[str, Any] = {"batch_size": 16, "lr": 1e-2, "checkpoint_every": 7, "schedule": "constant"}
    whole = one_run(warm_up=2)
    pt.fit(whole, examples(), steps=17, out=tmp_path / "whole", **settings)

    stopped = one_run(warm_up=2)

    class Stop(Exception):
        pass

    class At:
        def step(self, step: int, values: Any) -> None:
            if step == 12:
                raise Stop

        def record(self, record: Any) -> None:
            pass

        def close(self) -> None:
            pass

    with pytest.raises(Stop):
        pt.fit(stopped, examples(), steps=17, out=tmp_path / "again", listeners=[At()], **settings)
    again = one_run(warm_up=2)
    pt.fit(again, examples(), steps=17, out=tmp_path / "again", **settings)
    states = [run.state_dict() for run in (whole, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert int(whole.reinforce.updates) == 3 and int(whole.waiting.held) == 3


def in_several(rank: int, world: int) -> dict[str, Any]:
    """A short run; what each process sampled."""
    run = one_run(samples=6)
    pt.fit(run, examples(), steps=6, batch_size=16, fabric=_fabric(world))
    state = {name: tensor.clone() for name, tensor in run.state_dict().items()}
    return {"state": state, "seen": [SPACE.row(configuration).tolist() for configuration in run.network.seen]}


def _fabric(world: int) -> Any:
    from polytask.training import fabric

    made = fabric(devices=world, accelerator="cpu")
    made.launch()
    return made


@pytest.mark.soak
def test_several_processes_sample_for_themselves_and_learn_together(tmp_path: Path) -> None:
    ends = together(in_several, 2, tmp_path)
    assert ends[0]["seen"] != ends[1]["seen"]
    own = ("running_mean", "running_var", "num_batches_tracked")  # of the architectures that each has run
    for name, tensor in ends[0]["state"].items():
        assert name.endswith(own) or torch.equal(tensor, ends[1]["state"][name]), name
    assert int(ends[0]["state"]["reinforce.updates"]) == 2  # 12 samples in batches of 6


def test_half_precision_learns_as_well() -> None:
    run = one_run().to(torch.bfloat16)
    assert run.reinforce.moments.dtype == run.waiting.quality.dtype == torch.float32
    inputs, targets = examples()[:16]
    batch = inputs.bfloat16(), {name: target.bfloat16() for name, target in targets.items()}
    for _ in range(4):
        sum(run.losses(batch).values(), start=torch.zeros(())).backward()
    assert int(run.reinforce.updates) == 1 and run.network.heads[0].weight.grad.dtype == torch.bfloat16


def test_validation_measures_batch_norms_anew_and_changes_nothing() -> None:
    network = Switched()
    batch, calibration = examples()[:32], examples()[32:]
    measure = Validated(network, [batch, batch], [calibration], lambda c: {"parts": float(sum(c.values()))})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = measure({"first": True, "second": True})
    assert found == measure({"first": True, "second": True}) and found["parts"] == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    # By hand: the statistics of the calibration batch.
    x = batch[0]
    y = calibration[0]
    with torch.no_grad():
        for linear, norm in network.blocks.values():  # type: ignore[misc]
            z = linear(y)
            scaled = (linear(x) - z.mean(0)) / (z.var(0) + norm.eps).sqrt()
            x, y = x + scaled, y + (z - z.mean(0)) / (z.var(0, unbiased=False) + norm.eps).sqrt()
        expected = (network.heads[1](x)[:, 0] - batch[1]["task1"]).square().mean()
    assert found["task1"] == pytest.approx(float(expected), rel=1e-4)


class Opposed(nn.Module):
    """A weight for each task, to be learned; the first block helps one task and harms the other, the second only costs."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def losses(self, batch: Any, configuration: dict[str, Any]) -> dict[str, Tensor]:
        harmed = float(configuration["first"])
        apart = (self.weights - 1).square() + batch[0].square().mean()
        return {"task0": apart[0] + harmed, "task1": apart[1] + 1 - harmed}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.parameters()


def test_a_whole_run_learns_the_weights_and_each_tasks_network() -> None:
    torch.manual_seed(0)
    goals = {f"task{t}": Goal(f"task{t}", "lower", cost="parts", target=1.0, weight=2.0) for t in range(2)}

    def costs(configuration: dict[str, Any]) -> dict[str, float]:
        return {"parts": float(configuration["first"] + 2 * configuration["second"])}

    network = Opposed()
    run = OneRun(network, MultiTaskReinforce(Distributions(SPACE, goals), samples=8, lr=2.0), goals, costs, warm_up=20)
    pt.fit(run, examples(), steps=150, batch_size=16, lr=5e-2)
    chosen = [SPACE.configuration(row) for row in run.reinforce.distributions.most_probable()]
    assert chosen == [{"first": False, "second": False}, {"first": True, "second": False}]
    assert (run.reinforce.distributions.probabilities().amax(-1) > 0.9).all()
    torch.testing.assert_close(network.weights.detach(), torch.ones(2), rtol=0, atol=0.05)
    measure = Validated(network, [examples()[:32]], [examples()[32:]], costs)
    found = choose(run.reinforce.distributions, measure, goals, samples=2)
    assert [found.chosen[task].configuration for task in goals] == chosen and len(found.trials) == 4


def test_what_does_not_fit_is_refused() -> None:
    goals = {"task0": Goal("task0", "lower", cost="parts", target=1.0)}
    reinforce = MultiTaskReinforce(Distributions(SPACE, goals))
    with pytest.raises(InputError, match="a goal has a cost, expected costs="):
        OneRun(Switched(1), reinforce, goals)
    with pytest.raises(InputError, match=r"goals of \['other'\], expected one for each task in order: \['task0'\]"):
        OneRun(Switched(1), reinforce, {"other": goals["task0"]}, lambda c: {"parts": 1.0})
    with pytest.raises(InputError, match="warm_up -1"):
        OneRun(Switched(1), reinforce, goals, lambda c: {"parts": 1.0}, warm_up=-1)
    with pytest.raises(InputError, match="0 batches and 1 to calibrate"):
        Validated(Switched(1), [], [examples()[:4]])
