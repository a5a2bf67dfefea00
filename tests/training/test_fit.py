"""The training loop against loops written by hand, and what it promises about killed, unequal and failing runs."""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.training.small import Noisy, distance, encoder, examples, model, processes, same, tasks, without_time, write_end
from torch import Tensor, nn
from torch.utils.data import DataLoader

import polytask as pt
from polytask.balance import Fixed, Uncertainty
from polytask.data import Batches, Mixture
from polytask.errors import InputError, TrainingError
from polytask.scope import task_index
from polytask.training import checkpoint, fabric, fit

# Equality with loops written by hand


def by_hand(network: pt.Model, batches: list[Any], total: int, clip: float | None = None) -> list[Tensor]:
    """A plain PyTorch loop: the losses of the three small tasks summed, AdamW, cosine decay."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / total)) / 2)
    sums = []
    for x, targets in batches:
        features = network.encoder(x)
        losses = torch.stack(
            [
                F.cross_entropy(network.heads["colour"](features), targets["colour"]),
                F.binary_cross_entropy_with_logits(network.heads["round"](features).squeeze(1), targets["round"]),
                F.mse_loss(network.heads["weight"](features), targets["weight"][:, None]),
            ]
        )
        sums.append(losses.sum().detach())
        optimizer.zero_grad()
        losses.sum().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        schedule.step()
    return sums


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equals_a_loop_written_by_hand_bit_for_bit(clip: float | None, dropout: float) -> None:
    data, ours, theirs = examples(missing=False), model(dropout=dropout), model(dropout=dropout)
    stream = Batches(data, 32, seed=3)
    torch.manual_seed(3)
    sums = by_hand(theirs, [*stream.epoch(0), *stream.epoch(1), *stream.epoch(2)], 9, clip)
    fitted = fit(ours, data, epochs=3, batch_size=32, lr=1e-2, weight_decay=0.01, clip=clip, seed=3)
    assert same(ours, theirs)
    assert fitted.steps == 9
    assert sum(fitted.history[-1]["loss"].values()) == pytest.approx(float(sums[-1]), rel=1e-6)


def test_constant_schedule_own_optimizer_and_own_schedule() -> None:
    data, ours, theirs, stepped = examples(missing=False), model(), model(), model()
    fit(ours, data, steps=4, batch_size=32, schedule="constant", optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    fit(
        stepped,
        data,
        steps=4,
        batch_size=32,
        schedule=lambda optimizer, total: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=total),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
    )
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    stream = Batches(data, 32)
    for batch in [*stream.epoch(0), *stream.epoch(1)][:4]:
        optimizer.zero_grad()
        torch.stack(list(theirs.losses(batch).values())).sum().backward()
        optimizer.step()
    assert same(ours, theirs)
    assert same(stepped, theirs)


def test_rates_by_the_parameters_names() -> None:
    data, ours, theirs = examples(missing=False), model(), model()
    rates = {"heads.*": 0.1, "*.bias": 0.0, "*": 0.01}
    fit(
        ours,
        data,
        steps=1,
        batch_size=32,
        schedule="constant",
        lr=rates,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=9.0),
    )
    torch.stack(list(theirs.losses(next(iter(Batches(data, 32).epoch(0)))).values())).sum().backward()
    moved = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        rate = 0.1 if name.startswith("heads.") else 0.0 if name.endswith(".bias") else 0.01
        assert parameter.grad is not None
        torch.testing.assert_close(moved[name], parameter - rate * parameter.grad)
    adamw = model()
    fit(adamw, data, steps=1, batch_size=32, lr={"heads.*": 1e-3, "*": 0.0})
    still = dict(model().named_parameters())
    changed = {name for name, parameter in adamw.named_parameters() if not torch.equal(parameter, still[name])}
    assert changed == {name for name in still if name.startswith("heads.")}
    with pytest.raises(InputError, match=r"lr: no pattern of \['heads\.\*'\] fits the parameter 'encoder"):
        fit(model(), data, steps=1, batch_size=32, lr={"heads.*": 0.1})


def test_fixed_weights_scale_the_losses() -> None:
    data, ours, theirs = examples(missing=False), model(), model()
    weights = {"colour": 2.0, "weight": 0.25}
    fit(ours, data, steps=1, batch_size=32, balance=Fixed(weights), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    losses = theirs.losses(next(iter(Batches(data, 32).epoch(0))))
    (2 * losses["colour"] + losses["round"] + losses["weight"] / 4).backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        b.data -= 0.1 * b.grad  # type: ignore[operator]
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("balance", ["equal", "uncertainty"])
@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_accumulated_batches_equal_one_large_batch(balance: str, pieces: int) -> None:
    data, one, many = examples(128), model(), model()
    kept = [Uncertainty(), Uncertainty()] if balance == "uncertainty" else ["equal", "equal"]
    for network, accumulate, balancer in zip((one, many), (1, pieces), kept, strict=True):
        fit(
            network,
            data,
            steps=8,
            batch_size=64,
            balance=balancer,
            accumulate=accumulate,
            clip=1.0,
            optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        )
    assert distance(one, many) < 1e-6
    if balance == "uncertainty":
        assert distance(*kept) < 1e-6  # type: ignore[arg-type]
        assert float(kept[0].log_variance.detach().abs().max()) > 1e-3  # type: ignore[union-attr]


def test_accumulation_with_a_task_that_no_label_of_the_step_has() -> None:
    data = examples(64)
    data = pt.Examples(data.inputs, {**data.targets, "round": torch.full((64,), torch.nan)})
    one, many = model(), model()
    histories = [
        fit(network, data, steps=4, batch_size=32, accumulate=accumulate, lr=1e-2).history
        for network, accumulate in ((one, 1), (many, 4))
    ]
    assert distance(one, many) < 1e-6
    assert histories[0][-1]["loss"]["round"] == histories[1][-1]["loss"]["round"] == 0


def test_accumulation_over_a_mixture_averages_the_turns() -> None:
    data = examples(64, missing=False)
    sources = {name: data.only([name]) for name in ("colour", "weight")}
    mixture = Mixture(sources, batch_size=16, sampling="uniform", seed=1)
    ours, theirs = model(), model()
    fit(ours, mixture, steps=2, accumulate=4, schedule="constant", optimizer=lambda g: torch.optim.SGD(g, lr=0.1))
    turns = list(mixture.epoch(0))
    for step in (turns[:4], turns[4:8]):
        theirs.zero_grad()
        for name in sources:
            inputs = [batch[name][0] for batch in step if name in batch]
            if inputs:
                joined = torch.cat(inputs), {name: torch.cat([batch[name][1] for batch in step if name in batch])}
                theirs.losses(joined)[name].backward()
        for p in theirs.parameters():
            p.data -= 0.1 * p.grad if p.grad is not None else 0
    assert distance(ours, theirs) < 1e-6


# Looking changes nothing


def test_validation_conflicts_and_listeners_leave_the_training_as_it_is(tmp_path: Path) -> None:
    data = examples(96)
    shuffled = DataLoader(examples(40, seed=2), batch_size=8, shuffle=True)
    plain, watched = model(dropout=0.2, norm=True), model(dropout=0.2, norm=True)
    fit(plain, data, steps=12, batch_size=32)
    fitted = fit(watched, data, shuffled, steps=12, batch_size=32, conflicts=True, evaluate_every=3, out=tmp_path)
    state = torch.load(tmp_path / checkpoint.FILE, weights_only=True)["model"]
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    cosines = torch.tensor(fitted.history[0]["conflicts"]["cosines"])
    torch.testing.assert_close(cosines, cosines.T)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(3))
    negative = sum(float(cosines[i, j]) < 0 for i, j in ((0, 1), (0, 2), (1, 2)))
    assert fitted.history[0]["conflicts"]["share"] == pytest.approx(negative / 3)


def test_frozen_normalisation_layers_stay_frozen_over_an_evaluation() -> None:
    network = model(norm=True)
    network.train()
    frozen = network.encoder[1]
    frozen.eval()
    pt.evaluate(network, examples(32))
    assert network.training and network.encoder[0].training and not frozen.training


# Killed, and started again


@pytest.mark.parametrize(
    "kind",
    ["generator", "mixture", *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("examples", "loader", "workers"))],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    process = processes.Process(target=write_end, args=(kind, str(whole)))
    process.start()
    rng = random.Random(kind)
    kills = 0
    while not (killed / "end.pt").exists():
        victim = processes.Process(target=write_end, args=(kind, str(killed)))
        victim.start()
        if kills < (1 if kind == "workers" else 3):  # some time after it has made progress
            before = progress(killed)
            while progress(killed) == before and victim.is_alive():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            victim.kill()
        victim.join(120)
        assert victim.exitcode in (0, -signal.SIGKILL)
        kills += victim.exitcode != 0
    process.join(120)
    assert process.exitcode == 0 and kills >= 1
    ends = [torch.load(folder / "end.pt", weights_only=True) for folder in (whole, killed)]
    assert all(torch.equal(ends[1]["model"][name], value) for name, value in ends[0]["model"].items())
    assert ends[0]["history"] == ends[1]["history"]
    lines = [json.loads(line) for line in (killed / "history.jsonl").read_text().splitlines()]
    assert without_time(lines) == json.loads(ends[0]["history"])
    assert not list(killed.glob(".checkpoint.pt.*"))


def progress(folder: Path) -> int | None:
    path = folder / checkpoint.FILE
    return path.stat().st_mtime_ns if path.exists() else None


def test_a_run_stopped_between_checkpoints_resumes_with_the_same_bits(tmp_path: Path) -> None:
    data = examples(100)

    class Stop:
        def step(self, step: int, losses: dict[str, float]) -> None:
            if step == 7:
                raise KeyboardInterrupt

        def record(self, record: dict[str, Any]) -> None: ...

        def close(self) -> None: ...

    def run(out: Path | None, listeners: Any = ()) -> Any:
        network = model(dropout=0.4)
        settings: dict[str, Any] = {"steps": 20, "batch_size": 30, "checkpoint_every": 3, "evaluate_every": 5}
        return fit(network, data, examples(50, seed=1), out=out, listeners=listeners, **settings)

    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [Stop()])
    assert torch.load(tmp_path / checkpoint.FILE, weights_only=True)["step"] == 6
    again = run(tmp_path)
    assert same(whole.model, again.model)
    assert without_time(whole.history) == without_time(again.history)
    read = run(tmp_path)  # finished: only read
    assert same(whole.model, read.model) and read.history == again.history and read.seconds == again.seconds


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    fit(model(), examples(), steps=2, batch_size=32, out=tmp_path)
    with pytest.raises(InputError, match=r"other settings \(steps 2 -> 3, seed 0 -> 1\)"):
        fit(model(), examples(), steps=3, batch_size=32, seed=1, out=tmp_path)


# Losses that are not finite


class Explodes(nn.Module):
    """Two losses of which ``bad`` is not finite from a step on."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls, self.at, self.value = 0, at, value

    def losses(self, batch: Any) -> dict[str, Tensor]:
        self.calls += 1
        loss = (self.weight**2).sum()
        return {"good": loss, "bad": loss * (self.value if self.calls == self.at else 1.0)}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield self.weight


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_state_before(value: float, tmp_path: Path) -> None:
    good = Explodes(99, value)
    fit(good, [0] * 4, steps=4, schedule="constant")
    with pytest.raises(TrainingError, match=rf"task 'bad' is {value} at step 5; the last good state is in .*checkpoint.pt"):
        fit(Explodes(5, value), [0] * 4, steps=9, schedule="constant", out=tmp_path)
    state = torch.load(tmp_path / checkpoint.FILE, weights_only=True)
    assert state["step"] == 4
    assert torch.equal(state["model"]["weight"], good.weight)
    assert all(torch.isfinite(v).all() for s in state["optimizer"]["state"].values() for v in s.values())
    # The run goes on from there once its cause is mended, and ends as one that never failed.
    mended, never = Explodes(99, value), Explodes(99, value)
    fit(mended, [0] * 4, steps=9, schedule="constant", out=tmp_path)
    fit(never, [0] * 4, steps=9, schedule="constant")
    assert torch.equal(mended.weight, never.weight)


def test_without_a_good_state_the_message_says_so(tmp_path: Path) -> None:
    network = Explodes(1, math.nan)
    with torch.no_grad():
        network.weight[0] = math.inf
    with pytest.raises(TrainingError, match="'good' is inf at step 1; no good state was reached"):
        fit(network, [0], steps=1, out=tmp_path)
    with pytest.raises(TrainingError, match=r"'bad' is nan at step 1$"):
        fit(Explodes(1, math.nan), [0], steps=1)


def test_statistics_that_a_bad_batch_has_spoilt_are_not_saved(tmp_path: Path) -> None:
    data = examples(96)
    assert isinstance(data.inputs, Tensor)
    bad = next(iter(Batches(data, 32).epoch(1)))[0][0]  # a row of the fourth step
    spoilt = pt.Examples(torch.where(data.inputs == bad, torch.nan, data.inputs), data.targets)
    stream = [spoilt[row] for row in (torch.arange(32), torch.arange(32, 64), torch.arange(64, 96))]
    stream.sort(key=lambda batch: bool(batch[0].isnan().any()))  # type: ignore[union-attr]
    with pytest.raises(TrainingError, match=r"is nan at step 3; the last good state is in"):
        fit(model(norm=True), stream, steps=9, checkpoint_every=1, out=tmp_path)
    state = torch.load(tmp_path / checkpoint.FILE, weights_only=True)
    assert state["step"] == 2
    assert all(bool(value.isfinite().all()) for value in state["model"].values())
    with pytest.raises(TrainingError, match="no good state was reached"):
        fit(model(norm=True), stream[::-1], steps=9, checkpoint_every=1, out=tmp_path / "at once")


# What is best


def weights_at(step: int, **settings: Any) -> pt.Model:
    """The network after the first ``step`` of 20 steps."""

    class Keep:
        state: dict[str, Tensor] = {}

        def step(self, number: int, losses: dict[str, float]) -> None:
            if number == step:
                self.state = {name: value.clone() for name, value in network.state_dict().items()}

        def record(self, record: dict[str, Any]) -> None: ...

        def close(self) -> None: ...

    network, keep = model(), Keep()
    fit(network, examples(), steps=20, batch_size=32, listeners=[keep], **settings)
    network.load_state_dict(keep.state)
    return network


@pytest.mark.parametrize("monitor", [None, "skill", "delta_m", "loss", "round", "weight", "weight/r2", "colour/log_loss"])
def test_the_weights_returned_are_the_best_by_the_monitor(monitor: str | None) -> None:
    validation = examples(48, seed=1)
    baseline = {"colour": 0.5, "round": 0.5, "weight": 1.0} if monitor == "delta_m" else None
    network = model()
    fitted = fit(
        network,
        examples(),
        validation,
        steps=20,
        batch_size=32,
        lr=0.3,
        evaluate_every=2,
        monitor=monitor,
        baseline=baseline,
    )
    scores = {record["step"]: record["score"] for record in fitted.history}
    assert list(scores) == list(range(2, 21, 2))
    assert fitted.step == max(scores, key=lambda step: (scores[step], -step))
    assert fitted.score == scores[fitted.step]
    assert same(network, weights_at(fitted.step, lr=0.3))
    if monitor == "loss":
        losses = {n: v.item() for n, v in network.eval().losses(validation[:]).items()}
        assert fitted.score == pytest.approx(-sum(losses.values()), rel=1e-5)
        return
    metrics = pt.evaluate(network, validation)
    assert fitted.metrics == metrics
    if monitor == "delta_m":
        change = [(metrics["colour"]["accuracy"] - 0.5) / 0.5, (metrics["round"]["auroc"] - 0.5) / 0.5]
        assert fitted.score == pytest.approx((sum(change) - (metrics["weight"]["rmse"] - 1) / 1) / 3)
    elif monitor == "round":
        assert fitted.score == metrics["round"]["auroc"]
    elif monitor == "weight":
        assert fitted.score == -metrics["weight"]["rmse"]
    elif monitor == "weight/r2":
        assert fitted.score == metrics["weight"]["r2"]
    elif monitor == "colour/log_loss":
        assert fitted.score == -metrics["colour"]["log_loss"]
    else:
        colour = validation.targets["colour"][validation.targets["colour"] >= 0]
        base = float(colour.bincount().max() / len(colour))
        weight = validation.targets["weight"]
        spread = float(weight[~weight.isnan()].std(correction=0))
        skills = [
            (metrics["colour"]["accuracy"] - base) / (1 - base),
            (metrics["round"]["auroc"] - 0.5) / 0.5,
            1 - metrics["weight"]["rmse"] / spread,
        ]
        assert fitted.score == pytest.approx(sum(skills) / 3, abs=1e-5)


def test_patience_stops_after_so_many_evaluations_without_a_better_one(tmp_path: Path) -> None:
    # Validation labels are noise: the loss on them is best early on.
    noise = examples(64, seed=9)
    noise = pt.Examples(noise.inputs, {**noise.targets, "weight": -noise.targets["weight"]})
    run: dict[str, Any] = {
        "steps": 400,
        "batch_size": 32,
        "lr": 0.05,
        "monitor": "weight",
        "evaluate_every": 2,
        "patience": 3,
    }
    fitted = fit(model(), examples(), noise, **run, out=tmp_path)
    scores = [record["score"] for record in fitted.history]
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    assert len(scores) == best + 4 and fitted.steps == 2 * len(scores) < 400
    assert fitted.step == 2 * (best + 1)
    again = fit(model(), examples(), noise, **run, out=tmp_path)
    assert again.steps == fitted.steps and same(again.model, fitted.model)


def test_a_score_that_is_not_a_number_is_never_the_best() -> None:
    class Reluctant(pt.Model):
        """Predicts NaN at first."""

        calls = 0

        def predict(self, inputs: Any, tasks: Any = None) -> dict[str, Tensor]:
            self.calls += 1
            predictions = super().predict(inputs, tasks)
            return {name: p * math.nan if self.calls <= 2 else p for name, p in predictions.items()}

    torch.manual_seed(0)
    network = Reluctant(encoder(), tasks(), width=12)
    fitted = fit(network, examples(), examples(48, seed=1), steps=8, batch_size=32, evaluate_every=2, monitor="weight")
    assert math.isnan(fitted.history[0]["score"]) and math.isnan(fitted.history[1]["score"])
    assert fitted.step > 4 and fitted.score == max(record["score"] for record in fitted.history[2:])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"monitor": "skil"}, "did you mean 'skill'"),
        ({"monitor": "rond"}, "did you mean 'round'"),
        ({"monitor": "round/auroq"}, "did you mean 'auroc'"),
        ({"monitor": "delta_m"}, "'colour' has none"),
        ({"baseline": {"colour": 0.0, "round": 1.0, "weight": 1.0}}, "baseline of task 'colour' is 0.0"),
        ({"balance": "equl"}, "did you mean 'equal'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"steps": 3, "epochs": 1}, "both steps and epochs"),
        ({"steps": 0}, "steps is 0"),
        ({"evaluate_every": -1}, "evaluate_every is -1"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"accumulate": 0}, "accumulate 0"),
        ({"clip": 0.0}, "clip 0.0"),
        ({"batch_size": 97}, "batch size 97, expected 1 to 96"),
        ({"batch_size": 2, "accumulate": 3}, "cannot be shared"),
        ({"tensorboard": True}, "pass out="),
        ({"balance": Fixed({"rond": 1.0})}, "did you mean 'round'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_first_step(settings: dict[str, Any], words: str) -> None:
    network, before = model(), model()
    with pytest.raises(InputError, match=words):
        fit(network, examples(), examples(48, seed=1), **{"batch_size": 32, **settings})
    assert same(network, before)


def test_validation_data_that_cannot_judge_is_refused_before_the_first_step() -> None:
    data = examples()
    unlabelled = pt.Examples(data.inputs, {**data.targets, "round": torch.full((96,), torch.nan)})
    with pytest.raises(InputError, match="no label for task 'round'"):
        fit(model(), data, unlabelled, steps=1, monitor="round")
    with pytest.raises(InputError, match="no label for any task"):
        fit(model(), data, unlabelled.only(["round"]), steps=1)
    with pytest.raises(InputError, match="needs validation data"):
        fit(model(), data, steps=1, monitor="round")
    with pytest.raises(InputError, match="Mixture repeats or leaves out examples"):
        fit(model(), data, Mixture({"round": data.only(["round"])}), steps=1)
    # A task without a label is left out of the mean over tasks.
    fitted = fit(model(), data, unlabelled, steps=1)
    assert fitted.score is not None and math.isfinite(fitted.score) and math.isnan(fitted.metrics["round"]["auroc"])


# Other data, other modules


def test_data_whose_length_is_wrong_is_an_error_and_not_an_endless_loop() -> None:
    class Short(torch.utils.data.IterableDataset[Any]):
        def __len__(self) -> int:
            return 96

        def __iter__(self) -> Iterator[Any]:
            data = examples()
            return (data[i] for i in range(40))

    with pytest.raises(InputError, match="says that it has 12 batches, and has fewer"):
        fit(model(), DataLoader(Short(), batch_size=8), steps=30)
    with pytest.raises(InputError, match="as many as make a step"):
        fit(model(), [examples(8)[:]] * 2, accumulate=3)


class Lengthless:
    def __iter__(self) -> Iterator[Any]:
        return iter([examples(8)[:]] * 2)


def test_a_loader_without_length_is_refused() -> None:
    with pytest.raises(InputError, match="no length"):
        fit(model(), Lengthless(), steps=1)
    with pytest.raises(InputError, match="no batches"):
        fit(model(), [], steps=1)


def test_a_loader_gives_what_its_batches_give() -> None:
    data, one, other = examples(96), model(), model()
    order = torch.randperm(96)
    batches = [data[order[i : i + 24]] for i in range(0, 96, 24)]
    fit(one, batches, epochs=2)
    fit(other, DataLoader(data, batch_sampler=[order[i : i + 24].tolist() for i in range(0, 96, 24)]), epochs=2)
    assert same(one, other)


class Pretext(nn.Module):
    """No tasks, heads or labels: two losses of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.code = nn.Linear(6, 2)
        self.back = nn.Linear(2, 6)

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        code = self.code(batch)
        return {"rebuild": F.mse_loss(self.back(code), batch), "small": code.square().mean()}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.code.parameters()


def test_a_module_with_only_losses_trains_is_judged_and_resumed(tmp_path: Path) -> None:
    inputs = examples(64).inputs
    assert isinstance(inputs, Tensor)
    batches = list(inputs.split(16))
    ours, theirs = Pretext(), Pretext()
    fitted = fit(ours, batches, batches, epochs=5, schedule="constant", lr=1e-2, conflicts=True, out=tmp_path)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(5):
        for batch in batches:
            optimizer.zero_grad()
            torch.stack(list(theirs.losses(batch).values())).sum().backward()
            optimizer.step()
    assert fitted.step == 20 and same(ours, theirs)
    assert fitted.history[-1]["conflicts"]["tasks"] == ["rebuild", "small"]
    with torch.no_grad():
        expected = -sum(float(sum(theirs.losses(batch).values())) for batch in batches) / 4
    assert fitted.score == pytest.approx(expected, rel=1e-6)
    with pytest.raises(InputError, match="attribute 'tasks'"):
        fit(Pretext(), batches, steps=1, balance="uncertainty")
    with pytest.raises(InputError, match="can monitor 'loss' alone"):
        fit(Pretext(), batches, batches, steps=1, monitor="skill")


def test_a_module_that_names_its_losses_can_have_learned_weights() -> None:
    network = Pretext()
    network.tasks = ("rebuild", "small")  # type: ignore[assignment]
    balancer = Uncertainty()
    fit(network, [examples(32).inputs], steps=3, balance=balancer)
    assert balancer.log_variance.shape == (2,) and float(balancer.log_variance.detach().abs().min()) > 0


class Told(nn.Module):
    """An encoder that adds a vector of the task that the scope names."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.token = nn.Linear(6, 4), nn.Embedding(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.token(task_index(x, ["colour", "round", "weight"]))
        return out


def test_an_encoder_that_reads_the_task_scope_trains_and_is_judged_on_a_mixture() -> None:
    data, validation = examples(96), examples(48, seed=1)
    sources = {name: data.only([name]) for name in data.targets}
    torch.manual_seed(0)
    network = pt.Model(Told(), tasks())
    fitted = fit(
        network, Mixture(sources, batch_size=16), {n: validation.only([n]) for n in data.targets}, epochs=2, conflicts=True
    )
    assert set(fitted.metrics) == {"colour", "round", "weight"}
    fit(network, sources, {n: validation.only([n]) for n in data.targets}, steps=4, batch_size=16, monitor="loss")


def test_a_mixture_of_all_tasks_a_step_equals_their_sum() -> None:
    data, ours, theirs = examples(96), model(), model()
    mixture = Mixture({name: data.only([name]) for name in data.targets}, tasks_per_step="all", batch_size=16)
    fit(ours, mixture, steps=1, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    (batch, *_) = mixture.epoch(0)
    loss = sum(theirs.losses((x, {name: y}))[name] for name, (x, y) in batch.items())
    assert isinstance(loss, Tensor)
    loss.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.1 * b.grad, rtol=1e-6, atol=1e-7)  # type: ignore[operator]


# Precision


class Recorder(nn.Module):
    """Notes the types that it works in."""

    width = 5

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.seen: set[Any] = set()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        self.seen.add((self.training, out.dtype))
        return out


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "32-true"])
def test_precision_is_that_of_the_fabric_in_training_and_evaluation(precision: str) -> None:
    dtype = {"bf16": torch.bfloat16, "64": torch.float64, "32": torch.float32}[precision.split("-")[0]]
    recorder = Recorder()
    network = pt.Model(recorder, tasks())
    fitted = fit(
        network, examples(), examples(48, seed=1), steps=30, batch_size=32, lr=3e-2, fabric=fabric(precision=precision)
    )
    assert recorder.seen == {(True, dtype), (False, dtype)}
    assert fitted.history[-1]["loss"]["colour"] < 0.8 * fitted.history[0]["loss"]["colour"]
    kept = torch.float32 if precision == "bf16-mixed" else dtype
    assert {p.dtype for p in network.parameters()} == {kept}


def test_targets_keep_their_precision_when_the_network_has_little() -> None:
    # Around 20,000 bfloat16 tells numbers apart by 128.
    data = examples(96, missing=False)
    target = 20_000 + data.targets["weight"]
    task = pt.Task.regression("weight", scale="standard").fitted(target)
    torch.manual_seed(0)
    network = pt.Model(encoder(), [task], width=12)
    fitted = fit(
        network, pt.Examples(data.inputs, {"weight": target}), pt.Examples(data.inputs, {"weight": target}), steps=150,
        batch_size=48, lr=1e-2, fabric=fabric(precision="bf16-true"),
    )  # fmt: skip
    assert fitted.metrics["weight"]["r2"] > 0.9


# Listeners


def test_listeners_hear_of_every_step_and_record_and_are_closed_however_the_run_ends() -> None:
    class Heard:
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.records: list[int] = []
            self.losses: list[dict[str, float]] = []
            self.closed = 0

        def step(self, step: int, losses: dict[str, float]) -> None:
            self.steps.append(step)
            self.losses.append(losses)

        def record(self, record: dict[str, Any]) -> None:
            self.records.append(record["step"])

        def close(self) -> None:
            self.closed += 1

    heard, failed = Heard(), Heard()
    fitted = fit(model(), examples(), steps=10, batch_size=32, evaluate_every=4, listeners=[heard])
    assert heard.steps == list(range(1, 11)) and heard.records == [4, 8, 10] and heard.closed == 1
    means = {name: sum(losses[name] for losses in heard.losses[4:8]) / 4 for name in heard.losses[0]}
    assert fitted.history[1]["loss"] == pytest.approx(means)
    with pytest.raises(TrainingError):
        fit(Explodes(3, math.nan), [0] * 9, listeners=[failed])
    assert failed.steps == [1, 2] and failed.closed == 1


def test_progress_is_shown_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    fit(model(), examples(), examples(48, seed=1), steps=4, batch_size=32, progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "4/4" in shown.err and "colour" in shown.err and "accuracy" in shown.err


def test_noisy_examples_draw_from_torch() -> None:
    """The kill test rests on transforms that are random."""
    noisy = Noisy(examples(8))
    assert not torch.equal(noisy[0][0], noisy[0][0])
