"""A trial is a function of its fields and the data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import polytask as pt
from polytask.balance import balancers
from polytask.comparison.trial import Trial, arrays, fingerprint, from_arrays, run_trial, step_seconds, training_memory

DATA = pt.multidigits(("left", "ink"), size=128)
TRIAL = Trial(("left", "ink"), seed=1, lr=1e-3, steps=4)


def test_the_same_trial_gives_the_same_result_and_another_seed_another() -> None:
    first, again, other = (run_trial(trial, DATA)["test"] for trial in (TRIAL, TRIAL, replace(TRIAL, seed=2)))
    assert first == again != other


def test_a_trial_of_one_task_has_only_that_task() -> None:
    assert list(run_trial(replace(TRIAL, tasks=("ink",)), DATA)["test"]) == ["ink"]


def test_cosines_are_recorded_when_asked_for_and_change_nothing_else() -> None:
    plain, watched = run_trial(TRIAL, DATA), run_trial(replace(TRIAL, cosines=True), DATA)
    assert plain["test"] == watched["test"]
    assert plain["cosines"] == [] and watched["cosines"][0]["cosines"][0][0] == pytest.approx(1.0)


def test_static_weights_take_the_place_of_the_balancer() -> None:
    off = run_trial(replace(TRIAL, weights=(("left", 1.0), ("ink", 0.0))), DATA)
    assert off["test"]["ink"] != run_trial(TRIAL, DATA)["test"]["ink"]


def test_the_key_depends_on_every_field_and_on_the_data() -> None:
    keys = {
        t.key("x") for t in (TRIAL, replace(TRIAL, lr=2e-3), replace(TRIAL, steps=5), replace(TRIAL, balance="uncertainty"))
    }
    assert len(keys) == 4
    assert TRIAL.key("x") != TRIAL.key("y")


def test_the_fingerprint_sees_one_changed_pixel() -> None:
    changed = pt.multidigits(("left", "ink"), size=128)
    assert fingerprint(changed) == fingerprint(DATA)
    changed.test.inputs[0, 0, 0, 0] += 1  # type: ignore[index]
    assert fingerprint(changed) != fingerprint(DATA)


def test_examples_survive_as_arrays() -> None:
    back = from_arrays(arrays(DATA.train))
    assert torch.equal(back.inputs, DATA.train.inputs)  # type: ignore[arg-type]
    assert all(torch.equal(back.targets[name], target) for name, target in DATA.train.targets.items())
    named = pt.Examples({"x": torch.ones(3, 1), "y": torch.zeros(3, 2)}, {"t": torch.ones(3)})
    assert list(from_arrays(arrays(named)).inputs) == ["x", "y"]


def test_training_memory_counts_weights_four_times_and_grows_with_the_batch() -> None:
    model = TRIAL.model(DATA)
    weights = 4 * sum(p.numel() for p in model.parameters())
    small = training_memory(TRIAL, replace(DATA, settings={"batch_size": 8}))
    large = training_memory(TRIAL, replace(DATA, settings={"batch_size": 64}))
    assert 4 * weights < small < large
    assert large - 4 * weights == pytest.approx(8 * (small - 4 * weights), rel=0.2)


def test_a_step_takes_time() -> None:
    assert step_seconds(TRIAL, DATA, repeats=2) > 0


@pytest.mark.parametrize("balance", balancers)
def test_every_balancer_can_be_compared(balance: str) -> None:
    trial = replace(TRIAL, balance=balance, steps=4)
    assert step_seconds(trial, DATA, repeats=1) > 0
    assert run_trial(trial, DATA)["test"]
