"""Curricula in a run: what is trained when, and the same again after a run was stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.several import several, together
from tests.training.small import distance, examples, model, same, without_time

from polytask.data import Annealed, AntiCurriculum, Goal, Mixture, Promotion, Sampling, Schedule
from polytask.errors import InputError
from polytask.training import fit

NAMES = ("colour", "round", "weight")
# Reached in the course of these runs, not at once: what follows checks that.
PROMOTION = Promotion(
    [["weight"], ["weight", "colour"], NAMES],
    {"weight": Goal("r2", above=0.16), "colour": Goal("accuracy", above=0.32)},
    patience=4,
)


def mixture(sampling: Sampling, **settings: Any) -> Mixture:
    data = examples(96, missing=False)
    return Mixture({name: data.only([name]) for name in NAMES}, sampling, batch_size=16, **({"length": 5} | settings))


def run(sampling: Sampling, out: Path | None = None, steps: int = 60, listeners: Any = (), **settings: Any) -> Any:
    return fit(
        model(dropout=0.2), mixture(sampling, **settings), examples(64, seed=1, missing=False), steps=steps, lr=1e-2,
        evaluate_every=2, checkpoint_every=1, balance="uncertainty", out=out, listeners=listeners,
    )  # fmt: skip


def trained(history: list[dict[str, Any]]) -> list[tuple[float, set[str]]]:
    """For each record the epoch, and the tasks that had a step since the record before."""
    return [(record["epoch"], set(record["loss"])) for record in history]


class Stop:
    """Stops a run after a step, its evaluation and its checkpoint."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, step: int, losses: dict[str, float]) -> None:
        if step == self.at + 1:
            raise KeyboardInterrupt

    def record(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def test_hard_tasks_come_first() -> None:
    ours, start = model(), model()
    fitted = fit(ours, mixture(AntiCurriculum(["weight"], 4)), steps=20, weight_decay=0.0, evaluate_every=5)
    assert trained(fitted.history) == [(float(epoch), {"weight"}) for epoch in (1, 2, 3, 4)]
    assert same(ours.heads["colour"], start.heads["colour"]) and not same(ours.heads["weight"], start.heads["weight"])
    fitted = fit(model(), mixture(AntiCurriculum(["weight"], 2), length=15), steps=60, evaluate_every=15)
    assert [tasks for _, tasks in trained(fitted.history)] == [{"weight"}, {"weight"}, set(NAMES), set(NAMES)]


def test_tasks_come_and_go_by_epoch_with_all_in_a_step() -> None:
    rule = Schedule({0: ["weight"], 1: ["weight", "round"], 2: ["colour"]})
    fitted = fit(model(), mixture(rule, tasks_per_step="all"), steps=15, evaluate_every=5)
    assert [tasks for _, tasks in trained(fitted.history)] == [{"weight"}, {"weight", "round"}, {"colour"}]


@pytest.mark.parametrize("each", ["one", "all"])
def test_promotion_follows_the_records_from_the_next_epoch_on(each: str) -> None:
    fitted = run(PROMOTION, tasks_per_step=each)
    stages = [PROMOTION.stage([r for r in fitted.history if r["epoch"] <= epoch]) for epoch in range(12)]
    assert stages[0] == 0 and stages[-1] == 2 and sorted(stages) == stages
    start = 0.0
    for end, tasks in trained(fitted.history):
        between = [epoch for epoch in range(12) if start < epoch + 1 and epoch < end]
        allowed = {name for epoch in between for name in PROMOTION.stages[stages[epoch]]}
        assert tasks == allowed if each == "all" else tasks <= allowed
        start = end
    first = next(r["epoch"] for r in fitted.history if r["validation"]["weight"]["r2"] > 0.16)
    assert stages.index(1) == math.ceil(first)


@pytest.mark.parametrize(("each", "shifts"), [("all", (-2, 0)), pytest.param("one", (-4, -1, 1), marks=pytest.mark.soak)])
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(each: str, shifts: tuple[int, ...], tmp_path: Path) -> None:
    whole = run(PROMOTION, tasks_per_step=each)
    stages = [PROMOTION.stage([r for r in whole.history if r["epoch"] <= epoch]) for epoch in range(12)]
    # Stopped within the epochs that decide, after evaluations that the epoch under way must not hear of, and beyond them.
    for at in sorted({5 * stages.index(stage) + shift for stage in (1, 2) for shift in shifts}):
        out = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            run(PROMOTION, out, listeners=[Stop(at)], tasks_per_step=each)
        again = run(PROMOTION, out, tasks_per_step=each)
        assert same(whole.model, again.model)
        assert json.dumps(without_time(whole.history)) == json.dumps(without_time(again.history))


def test_an_annealed_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = run(Annealed(12))
    with pytest.raises(KeyboardInterrupt):
        run(Annealed(12), tmp_path, listeners=[Stop(33)])
    assert same(whole.model, run(Annealed(12), tmp_path).model)


def test_a_mixture_is_not_changed_by_a_run() -> None:
    mixed = mixture(PROMOTION)
    fit(model(), mixed, examples(64, seed=1, missing=False), steps=40, lr=1e-2, evaluate_every=5)
    assert list(mixed.weights(99)) == ["weight"]


def in_process(rank: int, world: int) -> dict[str, Any]:
    fitted = fit(
        model(), mixture(PROMOTION), examples(64, seed=1, missing=False), steps=60, lr=1e-2, evaluate_every=5,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1), fabric=several(world) if world > 1 else None,
    )  # fmt: skip
    return {"model": fitted.model.state_dict(), "tasks": [sorted(tasks) for _, tasks in trained(fitted.history)]}


def test_processes_are_promoted_together(tmp_path: Path) -> None:
    ends, one = together(in_process, 2, tmp_path), in_process(0, 1)
    assert distance(ends[0]["model"], ends[1]["model"]) == 0
    assert distance(ends[0]["model"], one["model"]) < 1e-5
    assert ends[0]["tasks"] == ends[1]["tasks"] == one["tasks"] and len(set(map(str, one["tasks"]))) > 1


@pytest.mark.parametrize(
    ("goal", "validation", "monitor", "words"),
    [
        (Goal("r2", above=0.1), False, None, "goes by the validation 'r2' of task 'weight': give validation data"),
        (Goal("r_2", above=0.1), True, None, "goes by the validation 'r_2' of task 'weight': did you mean 'r2'"),
        (Goal("r2", above=0.1), True, "loss", "goes by the validation 'r2' of task 'weight': known: loss"),
    ],
)
def test_goals_that_no_record_will_have_are_refused_before_the_first_step(
    goal: Goal, validation: bool, monitor: str | None, words: str
) -> None:
    network, start = model(), model()
    rule = Promotion([["weight"], NAMES], {"weight": goal})
    with pytest.raises(InputError, match=words):
        fit(network, mixture(rule), examples(32) if validation else None, steps=5, monitor=monitor)
    assert same(network, start)


def test_a_task_without_validation_labels_is_refused() -> None:
    held = examples(32, missing=False).only(["colour"])
    with pytest.raises(InputError, match="task 'weight': the validation data has no label for it"):
        fit(model(), mixture(Promotion([["weight"], NAMES], Goal("r2", above=0.1))), held, steps=5)


def test_goals_may_be_losses() -> None:
    rule = Promotion([["weight"], ["weight", "round"]], Goal("loss", below=1e6))
    held = examples(32, missing=False)
    fitted = fit(model(), mixture(rule, tasks_per_step="all"), held, steps=10, evaluate_every=5, monitor="loss")
    assert [tasks for _, tasks in trained(fitted.history)] == [{"weight"}, {"weight", "round"}]
