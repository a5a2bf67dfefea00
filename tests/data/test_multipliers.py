"""Multipliers: sizes of rounds, when one halves and how far it falls, and mixed steps of exactly those turns."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import polytask as pt
from polytask.data import Examples, Goal, Mixture, Multipliers
from polytask.errors import InputError

UP, DOWN = Goal("auc", above=math.inf), Goal("loss", below=-math.inf)


def records(values: list[float], name: str = "a", metric: str = "auc") -> list[dict[str, Any]]:
    return [{"epoch": float(k), "validation": {name: {metric: value}}} for k, value in enumerate(values)]


def sources(sizes: dict[str, int]) -> dict[str, Examples]:
    return {name: Examples(torch.arange(n), {name: 3 * torch.arange(n)}) for name, n in sizes.items()}


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 50), st.floats(0.05, 4)), min_size=1),
    st.integers(0, 9),
)
def test_an_epoch_is_the_sum_of_the_floors(given: dict[str, tuple[int, float]], number: int) -> None:
    floors = {name: math.floor(n * m) for name, (n, m) in given.items()}
    rule = Multipliers({name: m for name, (_, m) in given.items()})
    if not any(floors.values()):
        return
    mixture = Mixture(sources({name: n for name, (n, _) in given.items()}), rule, batch_size=1)
    assert len(mixture) == sum(floors.values())
    turns = Counter(name for batch in mixture.epoch(number) for name in batch)
    assert turns == {name: n for name, n in floors.items() if n}


def test_a_multiplier_halves_after_more_bad_validations_than_its_patience() -> None:
    rule = Multipliers({"a": 1.0}, least=0.3, goals=UP, patience=3)
    values = [rule.multiplier("a", records([0.5] * n)) for n in range(12)]
    # The first has nothing before it; then each fourth bad one halves, and 0.25 would be below the least.
    assert values == [1.0] * 5 + [0.5] * 4 + [0.3] * 3


def test_better_than_the_mean_of_the_window_is_good_and_begins_the_count_anew() -> None:
    rule = Multipliers({"a": 1.0}, goals=UP, patience=1, window=3)
    assert rule.multiplier("a", records([0.9, 0.1, 0.1])) == 0.5  # 0.1 against 0.9, then against 0.5
    assert rule.multiplier("a", records([0.9, 0.1, 0.6, 0.1])) == 1.0  # 0.6 is better than 0.5
    assert rule.multiplier("a", records([0.9, 0.1, 0.2, 0.3, 0.25])) == 0.5  # bad, bad, bad, and better than 0.2
    long, short = (Multipliers({"a": 1.0}, goals=UP, patience=0, window=w) for w in (3, 1))
    history = records([0.9, 0.95, 0.94])
    assert long.multiplier("a", history) == 1.0 and short.multiplier("a", history) == 0.5


@given(st.lists(st.floats(-1, 1), max_size=40), st.floats(0.01, 3), st.floats(0, 1), st.integers(0, 4), st.integers(1, 4))
def test_multipliers_fall_by_halves_and_never_below_the_least(
    values: list[float], start: float, least: float, patience: int, window: int
) -> None:
    rule = Multipliers({"a": start}, least, UP, patience, window)
    path = [rule.multiplier("a", records(values[:n])) for n in range(len(values) + 1)]
    floor = min(start, least)
    for n, (before, after) in enumerate(itertools.pairwise(path)):
        assert after == before or (after == max(floor, before / 2) and n > patience)
    assert min(path) >= floor


def test_lower_can_be_better_and_a_task_without_goal_stays() -> None:
    rule = Multipliers({"a": 1.0, "b": 1.0}, goals={"a": DOWN}, patience=0)
    falling, rising = records([3.0, 2.0, 1.0], metric="loss"), records([1.0, 2.0], metric="loss")
    assert rule.multiplier("a", falling) == 1.0 and rule.multiplier("a", rising) == 0.5
    assert rule.multiplier("b", rising) == 1.0 and rule.metrics() == {"a": "loss"}


def test_shorter_rounds_follow_one_another_in_an_epoch_of_the_same_length() -> None:
    mixture = Mixture(
        sources({"a": 8, "b": 4}), Multipliers({"a": 1.0, "b": 1.0}, goals={"a": UP}, patience=0), batch_size=1
    )
    mixture.hear(records([0.5, 0.5]))
    turns = [name for batch in mixture.epoch(1) for name in batch]
    assert len(turns) == len(mixture) == 12
    assert Counter(turns[:8]) == {"a": 4, "b": 4}  # one round with the halved multiplier, then the next begins


@pytest.mark.parametrize("rule", [Multipliers({"a": 0.5, "b": 2.0}), "proportional"])
def test_steps_of_several_turns_join_the_batches_of_a_task(rule: Any) -> None:
    made = {"a": Examples({"x": torch.arange(12)}, {"a": torch.arange(12) * 3}), "b": sources({"b": 9})["b"]}
    mixture = Mixture(made, rule, batch_size=1, turns=5)
    single = Mixture(made, rule, batch_size=1, length=5 * len(mixture))
    assert len(mixture) == (24 if rule != "proportional" else 21) // 5

    def seen(batches: Iterator[dict[str, Any]]) -> list[tuple[str, int]]:
        found = []
        for batch in batches:
            for name, (inputs, target) in batch.items():
                values = inputs["x"] if name == "a" else inputs
                assert torch.equal(target, 3 * values)
                found += [(name, int(value)) for value in values]
        return found

    steps = [seen(iter([batch])) for batch in mixture.epoch(2)]
    assert [len(step) for step in steps] == [5] * len(mixture)
    assert sorted(itertools.chain(*steps)) == sorted(seen(single.epoch(2)))  # the same turns, each by itself
    assert seen(mixture.epoch(2, 1)) == list(itertools.chain(*steps[1:]))


class Own(torch.nn.Module):
    """Neither a `polytask.Model` nor learning anything: its metric is the same at every validation."""

    tasks = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def losses(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: (self.weight - target.float()).square().mean() for name, (_, target) in batch.items()}

    def shared_parameters(self) -> Iterator[torch.nn.Parameter]:
        return self.parameters()

    def evaluate(self, data: Any) -> dict[str, dict[str, float]]:
        return {"a": {"auc": 0.5}, "b": {"auc": 0.5}}


def test_a_run_whose_module_evaluates_itself_halves_what_does_not_gain() -> None:
    rule = Multipliers({"a": 1.0, "b": 1.0}, least={"a": 0.5, "b": 1.0}, goals=UP, patience=0)
    mixture = Mixture(sources({"a": 8, "b": 4}), rule, batch_size=1)
    data = sources({"a": 2})
    fitted = pt.fit(Own(), mixture, data, epochs=3, monitor="a/auc", evaluate_every=12)
    assert [rule.multiplier("a", fitted.history[:n]) for n in range(4)] == [1.0, 1.0, 0.5, 0.5]
    missing = Mixture(sources({"a": 8}), Multipliers({"a": 1.0}, goals=Goal("ap", above=1.0)), batch_size=1)
    with pytest.raises(InputError, match="no validation 'ap' of task 'a'"):
        pt.fit(Own(), missing, data, epochs=3, monitor="a/auc", evaluate_every=8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"multipliers": {"a": 0.0}}, "multiplier 0.0 of task 'a', expected a number > 0"),
        ({"multipliers": {"a": 1.0}, "patience": -1}, "patience -1 and window 3"),
        ({"multipliers": {"a": 1.0}, "least": {"b": 1.0}}, "without multiplier, 'b'"),
        ({"multipliers": {"a": 1.0}, "goals": {"b": UP}}, "without multiplier, 'b'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Multipliers(**settings)
    with pytest.raises(InputError, match="no multiplier for the task 'b'"):
        Mixture(sources({"a": 3, "b": 3}), Multipliers({"a": 1.0}), batch_size=1)
    with pytest.raises(InputError, match="not all 0"):
        Mixture(sources({"a": 3}), Multipliers({"a": 0.1}), batch_size=1)
    with pytest.raises(InputError, match="2 turns in a step of all"):
        Mixture(sources({"a": 3}), tasks_per_step="all", batch_size=1, turns=2)
