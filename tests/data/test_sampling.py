"""Rules and curricula: whose turn it is, from sizes, the epoch and the run's records alone."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polytask.data import (
    Annealed,
    AntiCurriculum,
    Capped,
    Examples,
    Goal,
    Mixture,
    Promotion,
    Sampling,
    Schedule,
    Temperature,
)
from polytask.data.sampling import History
from polytask.errors import InputError

SIZES = {"a": 64, "b": 16, "c": 2}
INF, NAN = math.inf, math.nan

sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**9), min_size=1)
epochs = st.integers(0, 50)


def mixture(sampling: str | Sampling, seed: int = 0, **settings: Any) -> Mixture:
    sources = {name: Examples(torch.arange(10 * n), {name: torch.arange(10 * n)}) for name, n in SIZES.items()}
    return Mixture(sources, sampling, batch_size=10, seed=seed, **settings)


def shares(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def flat(batches: Any) -> list[tuple[str, list[int]]]:
    return [(name, inputs.tolist()) for batch in batches for name, (inputs, _) in batch.items()]


# Rules by size


@given(sizes, epochs)
def test_temperature_one_is_proportional_and_infinity_uniform(n: dict[str, int], epoch: int) -> None:
    assert shares(Temperature(1.0).weights(n, epoch, ())) == pytest.approx(shares(n))
    assert set(Temperature(INF).weights(n, epoch, ()).values()) == {1.0}


@given(sizes, epochs, st.floats(0.5, 100))
def test_temperature_is_a_root_of_the_size(n: dict[str, int], epoch: int, t: float) -> None:
    expected = {name: math.exp(math.log(size) / t) for name, size in n.items()}
    assert shares(Temperature(t).weights(n, epoch, ())) == pytest.approx(shares(expected), rel=1e-9)


@given(sizes, epochs, st.integers(1, 10**9))
def test_capped_takes_the_smaller_of_size_and_limit(n: dict[str, int], epoch: int, limit: int) -> None:
    expected = {name: size if size < limit else limit for name, size in n.items()}
    assert Capped(limit).weights(n, epoch, ()) == expected
    assert Capped(max(n.values())).weights(n, epoch, ()) == Capped(INF).weights(n, epoch, ()) == n
    assert len(set(Capped(min(n.values())).weights(n, epoch, ()).values())) == 1


@given(sizes, st.integers(2, 50), st.data())
def test_annealed_goes_from_proportional_to_the_fifth_root(n: dict[str, int], total: int, data: st.DataObject) -> None:
    e = data.draw(st.integers(1, total))  # the paper counts epochs from 1
    alpha = 1 - 0.8 * (e - 1) / (total - 1)
    expected = {name: math.exp(alpha * math.log(size)) for name, size in n.items()}
    assert shares(Annealed(total).weights(n, e - 1, ())) == pytest.approx(shares(expected), rel=1e-9)
    assert shares(Annealed(total).weights(n, 0, ())) == pytest.approx(shares(n))
    fifth = shares(Temperature(5.0).weights(n, 0, ()))
    for later in (total - 1, total, total + 7):
        assert shares(Annealed(total).weights(n, later, ())) == pytest.approx(fifth, rel=1e-9)


def test_a_single_epoch_of_annealing_is_proportional() -> None:
    assert shares(Annealed(1).weights(SIZES, 0, ())) == pytest.approx(shares(SIZES))


RULES: list[Sampling] = [
    Temperature(1.0), Temperature(3.0), Temperature(INF), Capped(10), Annealed(5),
    AntiCurriculum(["a"], 1), Schedule({0: ["a"], 2: ["a"]}), Promotion([["a"]], Goal("accuracy", above=0.9)),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_one_task_has_all_turns(rule: Sampling) -> None:
    for epoch in range(6):
        assert shares(rule.weights({"a": 7}, epoch, ())) == {"a": 1.0}


@pytest.mark.parametrize("rule", RULES[:5], ids=repr)
@given(n=sizes, epoch=epochs)
def test_a_larger_task_never_has_fewer_turns_and_none_is_left_out(rule: Sampling, n: dict[str, int], epoch: int) -> None:
    weights = rule.weights(n, epoch, ())
    assert list(weights) == list(n) and all(0 < w < INF for w in weights.values())
    by_size = sorted(n, key=lambda name: n[name])
    assert all(weights[a] <= weights[b] for a, b in itertools.pairwise(by_size))


@pytest.mark.parametrize("sampling", ["uniform", "proportional", "temperature"])
def test_names_stand_for_temperatures(sampling: str) -> None:
    expected = {"uniform": Temperature(INF), "proportional": Temperature(1.0), "temperature": Temperature(3.0)}
    assert mixture(sampling, temperature=3.0).sampling == expected[sampling]


# Turns that a mixture draws

EXPECTED: list[tuple[Sampling, Callable[[int], Mapping[str, float]]]] = [
    (Temperature(INF), lambda epoch: {"a": 1, "b": 1, "c": 1}),
    (Temperature(2.0), lambda epoch: {"a": 8, "b": 4, "c": 2**0.5}),
    (Capped(10), lambda epoch: {"a": 10, "b": 10, "c": 2}),
    (Capped(1), lambda epoch: {"a": 1, "b": 1, "c": 1}),
    (Annealed(3), lambda epoch: {name: n ** (1 - 0.4 * epoch) for name, n in SIZES.items()}),
    (AntiCurriculum(["c"], 1), lambda epoch: {"a": 0, "b": 0, "c": 1} if epoch < 1 else {"a": 1, "b": 1, "c": 1}),
    (
        AntiCurriculum(["a", "b"], 2, sampling="proportional"),
        lambda epoch: {"a": 64, "b": 16, "c": 0} if epoch < 2 else SIZES,
    ),
    (
        Schedule({0: ["a"], 1: ["b", "a"], 2: ["c", "b"]}, sampling=Capped(8)),
        lambda epoch: [{"a": 1, "b": 0, "c": 0}, {"a": 1, "b": 1, "c": 0}, {"a": 0, "b": 8, "c": 2}][epoch],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "expected"), EXPECTED, ids=lambda value: repr(value) if isinstance(value, Sampling) else ""
)
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_turns_come_as_often_as_the_rule_says(
    rule: Sampling, expected: Callable[[int], Mapping[str, float]], epoch: int
) -> None:
    wanted = shares(expected(epoch))
    probabilities = dict(zip(SIZES, mixture(rule).probabilities(epoch).tolist(), strict=True))
    assert probabilities == pytest.approx(wanted)
    turns: Counter[str] = Counter()
    for seed in range(40):
        turns.update(name for batch in mixture(rule, seed).epoch(epoch) for name in batch)
    assert turns.total() == 40 * 82
    for name, p in wanted.items():
        assert abs(turns[name] / turns.total() - p) <= 4 * (p * (1 - p) / turns.total()) ** 0.5


def test_all_tasks_of_a_stage_in_each_step() -> None:
    rule = Schedule({0: ["c"], 1: ["c", "a"], 3: ["b"]})
    mixed = mixture(rule, tasks_per_step="all")
    for epoch, names in enumerate([["c"], ["a", "c"], ["a", "c"], ["b"], ["b"]]):
        batches = list(mixed.epoch(epoch))
        assert len(batches) == len(mixed) == 64 and all(list(batch) == names for batch in batches)


@pytest.mark.parametrize("each", ["one", "all"])
def test_the_length_of_an_epoch_can_be_chosen(each: str) -> None:
    mixed = mixture("uniform", tasks_per_step=each, length=7)
    assert len(mixed) == len(list(mixed.epoch(0))) == 7
    long = mixture("uniform", tasks_per_step=each, length=200)
    assert flat(list(long.epoch(3))[90:]) == flat(long.epoch(3, 90))
    with pytest.raises(InputError, match="length 0, expected at least 1"):
        mixture("uniform", length=0)


# Promotion

Values = Mapping[str, float]


def records(*values: tuple[float, Values], metric: str = "accuracy") -> list[dict[str, Any]]:
    return [{"epoch": epoch, "validation": {n: {metric: v} for n, v in each.items()}} for epoch, each in values]


GROWING = Promotion([["a"], ["a", "b"], ["b", "c"]], Goal("accuracy", above=0.9))


@pytest.mark.parametrize(
    ("history", "stage"),
    [
        ([], 0),
        ([(1, {"a": 0.9})], 0),  # above, not at
        ([(1, {"a": NAN})], 0),
        ([(1, {"a": 0.91})], 1),
        ([(1, {"a": 0.95}), (2, {"a": 0.95, "b": 0.5})], 1),
        ([(1, {"a": 0.95}), (2, {"a": 0.80, "b": 0.95})], 1),  # every task of the stage
        ([(1, {"a": 0.95}), (2, {"a": 0.95, "b": 0.95})], 2),
        ([(0.5, {"a": 0.95}), (1, {"a": 0.95, "b": 0.95})], 1),  # the second stage begins at epoch 1: not measured yet
        ([(0.5, {"a": 0.95}), (1, {"a": 0.95, "b": 0.95}), (1.5, {"a": 0.95, "b": 0.95})], 2),
        ([(1, {"a": 0.95}), (2, {"a": 0.95, "b": 0.95}), (3, {"b": 0.1, "c": 0.1})], 2),  # no way back
        ([(1, {"a": 0.95}), (2, {"a": 0.95, "b": 0.95}), (3, {"b": 0.99, "c": 0.99})], 2),  # the last does not end
    ],
)
def test_goals_promote(history: list[tuple[float, Values]], stage: int) -> None:
    assert GROWING.stage(records(*history)) == stage
    mixed = mixture(GROWING, tasks_per_step="all")
    mixed.hear(records(*history))
    assert list(mixed.weights(99)) == list(GROWING.stages[stage])


@pytest.mark.parametrize(
    ("errors", "stages"),
    [
        ([3, 2, 1], [0, 0, 0]),
        ([3, 3, 3], [0, 0, 1]),
        ([3, 4, 2.9, 3, 3], [0, 0, 0, 0, 1]),
        ([3, 4, 5, 9, 8, 9, 9], [0, 0, 1, 1, 1, 1, 2]),  # the best starts anew with each stage
        ([NAN, NAN, 3], [0, 1, 1]),
        ([NAN, 3, NAN, NAN], [0, 0, 0, 1]),
        ([3, 0.5], [0, 1]),
    ],
)
def test_patience_promotes_when_nothing_gets_better(errors: list[float], stages: list[int]) -> None:
    rule = Promotion([["a"], ["a", "b"], ["c"]], {"a": Goal("mae", below=1.0)}, patience=2)
    history = records(*((i + 1, {"a": error}) for i, error in enumerate(errors)), metric="mae")
    assert [rule.stage(history[: i + 1]) for i in range(len(history))] == stages


def test_patience_waits_while_any_task_gets_better() -> None:
    rule = Promotion([["a", "b"], ["c"]], Goal("accuracy", above=INF), patience=2)
    values = [(0.5, 0.5), (0.4, 0.6), (0.6, 0.5), (0.6, 0.6), (0.5, 0.6)]
    history = records(*((i + 1, {"a": a, "b": b}) for i, (a, b) in enumerate(values)))
    assert [rule.stage(history[:i]) for i in range(6)] == [0, 0, 0, 0, 0, 1]


def test_metrics_are_those_that_goals_of_stages_that_end_name() -> None:
    goals = {"a": Goal("accuracy", above=0.9), "b": Goal("rmse", below=3)}
    assert Promotion([["a", "c"], ["b"], ["c"]], goals).metrics() == {"a": "accuracy", "b": "rmse"}
    assert Promotion([["a"], ["b"]], goals).metrics() == {"a": "accuracy"}
    assert Schedule({0: ["a"]}).metrics() == Capped(3).metrics() == {}
    with pytest.raises(InputError, match="no validation 'accuracy' of task 'a': known: rmse"):
        GROWING.stage(records((1, {"a": 1.0}), metric="rmse"))


histories = st.lists(
    st.tuples(st.integers(1, 6), st.fixed_dictionaries({name: st.sampled_from([0.1, 0.5, 0.95, NAN]) for name in SIZES})),
    max_size=12,
)


@given(histories, st.sampled_from([None, 1, 2]))
def test_promotion_goes_up_by_one_at_epochs_in_which_something_was_measured(
    steps: list[tuple[int, Values]], patience: int | None
) -> None:
    """Against a rule that keeps its state and is told of one epoch after another."""
    rule = Promotion([["a"], ["a", "b"], ["a", "b", "c"], ["c"]], Goal("accuracy", above=0.9), patience=patience)
    at, history = 0.0, []
    for wait, values in steps:
        at += wait / 4
        history += records((at, values))
    stage, best, waited = 0, dict.fromkeys(SIZES, -1.0), 0
    for epoch in range(int(at) + 3):
        mixed = mixture(rule, tasks_per_step="all")
        mixed.hear(history)
        assert list(mixed.weights(epoch)) == list(rule.stages[stage])
        for record in history:
            if epoch < record["epoch"] <= epoch + 1 and stage < 3:
                seen = {name: record["validation"][name]["accuracy"] for name in rule.stages[stage]}
                better = [name for name, value in seen.items() if value > best[name]]
                best |= {name: seen[name] for name in better}
                waited = 0 if better else waited + 1
                if min(0.0 if math.isnan(v) else v for v in seen.values()) > 0.9 or waited == patience:
                    stage, best, waited = stage + 1, dict.fromkeys(SIZES, -1.0), 0
                    break


@given(histories, st.integers(0, 3), st.integers(0, 90), st.sampled_from(["one", "all"]))
def test_an_epoch_repeats_whatever_was_heard_since_it_began(
    steps: list[tuple[int, Values]], number: int, skip: int, each: str
) -> None:
    history, at = [], 0.0
    for wait, values in steps:
        at += wait / 4
        history += records((at, values))
    before, after = mixture(GROWING, tasks_per_step=each), mixture(GROWING, tasks_per_step=each)
    before.hear([record for record in history if record["epoch"] <= number])
    after.hear(history)
    assert flat(after.epoch(number, skip)) == flat(list(before.epoch(number))[skip:])


def test_processes_hear_the_same() -> None:
    history = records((1, {"a": 0.95}))
    whole = mixture(GROWING)
    for rank in range(2):
        share = whole.shared(rank, 2)
        share.hear(history)
        assert list(share.weights(1)) == ["a", "b"] and list(whole.weights(1)) == ["a"]


# What is refused


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Temperature(0), "temperature 0, expected a number > 0"),
        (lambda: Temperature(NAN), "temperature nan"),
        (lambda: Capped(0), "limit 0, expected a number of batches > 0"),
        (lambda: Capped(NAN), "limit nan"),
        (lambda: Annealed(0), "annealed over 0 epochs, expected at least 1"),
        (lambda: AntiCurriculum([], 2), r"a stage of tasks \[\], expected a list of at least one name"),
        (lambda: AntiCurriculum("hard", 2), "a stage of tasks 'hard', expected a list"),
        (lambda: AntiCurriculum(["a"], 0), "hard tasks first for 0 epochs, expected at least 1"),
        (lambda: AntiCurriculum(["a"], 1, sampling="unifrm"), "did you mean 'uniform'"),
        (lambda: AntiCurriculum(["a"], 1, sampling=Schedule({0: ["a"]})), "AntiCurriculum samples by another curriculum"),
        (lambda: Schedule({}), r"stages begin at epochs \[\], expected the first at 0"),
        (lambda: Schedule({1: ["a"]}), r"stages begin at epochs \[1\], expected the first at 0"),
        (lambda: Schedule({0: ["a"], -1: ["b"]}), r"stages begin at epochs \[-1, 0\]"),
        (lambda: Schedule({0: ["a"], 1: []}), r"a stage of tasks \[\]"),
        (lambda: Promotion([], Goal("x", above=1)), r"stages \[\], expected a list of at least one set"),
        (lambda: Promotion("ab", Goal("x", above=1)), "stages 'ab'"),
        (lambda: Promotion([["a"], []], Goal("x", above=1)), r"a stage of tasks \[\]"),
        (lambda: Promotion([["a"]], Goal("x", above=1), patience=0), "patience 0, expected at least 1"),
        (lambda: Promotion([["a"], ["b"]], {}), r"no goal for any task of stage \['a'\], which would not end"),
        (lambda: Promotion([["left"]], {"lft": Goal("x", above=1)}), "unknown task 'lft': did you mean 'left'"),
        (lambda: Goal("x"), "expected above= or below=, one of them"),
        (lambda: Goal("x", above=1, below=2), "expected above= or below=, one of them"),
        (lambda: mixture(AntiCurriculum(["aa"], 1)), "unknown task 'aa'"),
        (lambda: mixture(Schedule({0: ["a"], 9: ["d"]})), "unknown task 'd': known: a, b, c"),
        (lambda: mixture(Promotion([["a"], ["d"]], Goal("x", above=1))), "unknown task 'd': known: a, b, c"),
        (lambda: Mixture({}, Capped(3)), "a mixture of no sources"),
        (lambda: mixture(Weights({"a": -1.0, "b": 1.0, "c": 1.0})), "expected finite numbers >= 0 that are not all 0"),
        (lambda: mixture(Weights({"a": NAN, "b": 1.0, "c": 1.0})), "expected finite numbers"),
        (lambda: mixture(Weights({"a": INF, "b": 1.0, "c": 1.0})), "expected finite numbers"),
        (lambda: mixture(Weights(dict.fromkeys("abc", 0.0))), "not all 0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


@dataclass(frozen=True)
class Weights(Sampling):
    """A rule of a user's own."""

    given: Mapping[str, float]

    def weights(self, sizes: Mapping[str, int], epoch: int, history: History) -> dict[str, float]:
        return dict(self.given)


def test_a_rule_of_ones_own() -> None:
    mixed = mixture(Weights({"a": 0.0, "b": 3.0, "c": 1.0}))
    assert mixed.probabilities().tolist() == [0, 0.75, 0.25]
    assert {name for batch in mixed.epoch(0) for name in batch} == {"b", "c"}
