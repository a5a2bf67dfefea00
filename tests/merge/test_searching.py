from __future__ import annotations

import itertools
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polytask.errors import InputError, MissingExtra
from polytask.merge import TaskArithmetic, merge_state_dicts
from polytask.merge.searching import Found, Range, search

Settings = dict[str, Any]

MIXED = {
    "weight": Range(0.5, 1.5, count=2),
    "gamma": Range(1e-4, 1.0, log=True),
    "k": [1, 2, 3, 4],
    "scope": ["model", "tensor"],
}


def score(s: Settings) -> float:
    """Best at weights 0.7 and 1.4, gamma 0.01, k 3, scope model."""
    weights = sum((w - best) ** 2 for w, best in zip(s["weight"], (0.7, 1.4), strict=True))
    return -weights - 0.01 * (math.log10(s["gamma"]) + 2) ** 2 - 0.1 * abs(s["k"] - 3) - 0.2 * (s["scope"] == "tensor")


class Counted:
    """An evaluation that remembers what it was asked, and spoils what it was given."""

    def __init__(self, evaluate: Callable[[Settings], float] = score) -> None:
        self.evaluate = evaluate
        self.asked: list[str] = []

    def __call__(self, given: Settings) -> float:
        self.asked.append(json.dumps(given))
        found = self.evaluate(given)
        for value in given.values():
            if isinstance(value, list):
                value.clear()
        given.clear()
        return found


numbers = st.floats(-1e6, 1e6)
choices = st.lists(
    st.one_of(st.integers(-5, 5), st.sampled_from(["a", "b"]), st.lists(st.integers(0, 3))), min_size=1, max_size=5
)
axes = st.one_of(
    st.tuples(numbers, numbers, st.none() | st.integers(1, 3))
    .filter(lambda t: t[0] != t[1])
    .map(lambda t: Range(min(t[:2]), max(t[:2]), t[2])),
    st.tuples(st.floats(1e-9, 1e9), st.floats(1.001, 1e9)).map(lambda t: Range(t[0], t[0] * t[1], log=True)),
    choices.filter(lambda c: all(x not in c[:i] for i, x in enumerate(c))),
)
spaces = st.dictionaries(st.sampled_from("abcd"), axes, min_size=1)


def inside(axis: Any, value: Any) -> bool:
    if not isinstance(axis, Range):
        return value in axis
    several = [value] if axis.count is None else value
    return len(several) == (axis.count or 1) and all(type(v) is float and axis.low <= v <= axis.high for v in several)


@settings(deadline=None, max_examples=60)
@given(spaces, st.integers(0, 2**32), st.integers(1, 25), st.sampled_from(["auto", "evolution"]))
def test_within_the_bounds_never_twice_and_by_the_seed_alone(space: Any, seed: int, budget: int, sampler: str) -> None:
    noise = lambda s: Random(json.dumps(s)).random()  # noqa: E731
    evaluate = Counted(noise)
    found = search(evaluate, space, budget=budget, sampler=sampler, seed=seed)
    size = math.inf if any(isinstance(a, Range) for a in space.values()) else math.prod(map(len, space.values()))
    assert len(found.tried) == min(budget, size) == len(set(evaluate.asked))
    for tried, value in found.tried:
        assert list(tried) == list(space)
        assert all(inside(axis, tried[name]) for name, axis in space.items())
        assert value == noise(tried)
    assert (found.best, found.score) == max(found.tried, key=lambda pair: pair[1])
    assert found == search(noise, space, budget=budget, sampler=sampler, seed=seed)


def test_the_grid_is_all_combinations_in_order() -> None:
    space = {"scale": [0.1, 0.5, 1.0], "scope": ["model", "tensor"], "weight": [[1, 1], [1, 2]]}
    found = search(lambda s: 0.0, space)
    assert [tuple(s.values()) for s, _ in found.tried] == list(itertools.product(*space.values()))
    assert found == search(lambda s: 0.0, space, budget=12) == search(lambda s: 0.0, space, sampler="grid", seed=5)


def test_of_equal_scores_the_first_wins() -> None:
    space = {"k": [1, 2, 3, 4]}
    assert search(lambda s: float(s["k"] > 1), space).best == {"k": 2}
    found = search(lambda s: float(s["k"] > 1), space, start={"k": 4})
    assert found.best == {"k": 4}
    assert [s["k"] for s, _ in found.tried] == [4, 1, 2, 3]


def test_the_sampler_by_itself() -> None:
    """All combinations if they fit in the budget; else a few of them, of which the first is in the middle."""
    space = {"a": list(range(9)), "b": list(range(9))}
    assert search(lambda s: 0.0, space, budget=81).tried[0][0] == {"a": 0, "b": 0}
    few = search(lambda s: 0.0, space, budget=80)
    assert few.tried[0][0] == {"a": 4, "b": 4} and len(few.tried) == 80


def test_evolution_finds_the_top_of_a_quadratic_in_five_dimensions() -> None:
    top = [0.3, 0.7, 0.2, 0.9, 0.55]

    def quadratic(s: Settings) -> float:
        return -sum((w - t) ** 2 for w, t in zip(s["weight"], top, strict=True))

    for seed in range(5):
        found = search(quadratic, {"weight": Range(0, 1, count=5)}, budget=300, seed=seed)
        random = Random(seed)
        anywhere = max(quadratic({"weight": [random.random() for _ in top]}) for _ in range(300))
        assert found.score > 1e-3 * anywhere  # the distance falls by orders of magnitude
        assert found.score > 1e-4 * found.tried[0][1]


def test_evolution_reaches_bounds_and_orders_of_magnitude() -> None:
    assert search(lambda s: s["a"] - s["b"], {"a": Range(0.8, 1.3), "b": Range(-2, 5)}, budget=60).best == {
        "a": 1.3,
        "b": -2,
    }
    found = search(lambda s: -abs(math.log10(s["a"]) + 5), {"a": Range(1e-6, 1, log=True)}, budget=60)
    assert found.best["a"] == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_evolution_mixes_ranges_and_choices(seed: int) -> None:
    found = search(score, MIXED, budget=250, seed=seed)
    assert (found.best["k"], found.best["scope"]) == (3, "model")
    assert found.score > -0.01


def test_evolution_tries_all_there_is() -> None:
    """Near the best everything is known long before, and the score has one lonely top."""
    space = {"a": list(range(30)), "b": list("xyz")}
    found = search(lambda s: float(s == {"a": 29, "b": "z"}), space, sampler="evolution")
    assert len(found.tried) == 90 and found.best == {"a": 29, "b": "z"}


@pytest.mark.parametrize("sampler", ["evolution", "optuna"])
def test_the_start_is_tried_first(sampler: str) -> None:
    if sampler == "optuna":
        pytest.importorskip("optuna")
    start = {"weight": [0.9, 1.1], "k": 2, "scope": "tensor", "gamma": 0.3}
    found = search(score, MIXED, budget=12, sampler=sampler, start=start)
    assert found.tried[0][0] == start and list(found.tried[0][0]) == list(MIXED)
    assert found.score > score(start)


def test_weights_of_models() -> None:
    """The settings are a rule's: the target is a weighted sum of the models, and its weights are found."""
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.zeros(40)}
    models = [{"w": torch.randn(40, generator=generator)} for _ in range(3)]
    target = sum(w * m["w"] for w, m in zip((0.6, 1.1, 0.9), models, strict=True))

    def on_validation_data(merged: dict[str, torch.Tensor]) -> torch.Tensor:
        return -(merged["w"] - target).square().mean()

    space = {"weight": Range(0.5, 1.3, count=3), "scale": [1.0]}
    found = search(lambda s: on_validation_data(merge_state_dicts(TaskArithmetic(**s), models, base)), space, budget=200)
    assert found.best["weight"] == pytest.approx([0.6, 1.1, 0.9], abs=0.03)


# The journal


def resumed(path: Path, sampler: str = "auto", budget: int = 12) -> tuple[Found, list[str]]:
    evaluate = Counted()
    return search(evaluate, MIXED, budget=budget, sampler=sampler, path=path), evaluate.asked


@pytest.mark.parametrize("sampler", ["evolution", pytest.param("optuna", marks=pytest.mark.soak)])
def test_a_journal_cut_anywhere_goes_on(sampler: str, tmp_path: Path) -> None:
    if sampler == "optuna":
        pytest.importorskip("optuna")
    whole, asked = resumed(tmp_path / "whole", sampler)
    assert whole == search(score, MIXED, budget=12, sampler=sampler)
    content = (tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in {
        0,
        *ends,
        *(end + 1 for end in ends[:-1]),
        *(end - 1 for end in ends[1:]),
        *range(ends[0], len(content), 41),
    }:
        path = tmp_path / "cut"
        path.write_bytes(content[:cut])
        found, rest = resumed(path, sampler)
        done = max(sum(end <= cut for end in ends) - 1, 0)
        assert (found, rest) == (whole, asked[done:])
        assert path.read_bytes() == content


@pytest.mark.parametrize("sampler", ["optuna", pytest.param("evolution", marks=pytest.mark.soak)])
def test_a_killed_search_goes_on(sampler: str, tmp_path: Path) -> None:
    if sampler == "optuna":
        pytest.importorskip("optuna")
    script = Path(__file__).with_name("searching_kills.py")
    run = subprocess.run([sys.executable, script, tmp_path, sampler], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["kills"] >= 3 * 3  # for each evaluation: before it, after it, and before it is noted
    assert (found["failed"], found["differing"], found["again"]) == ([], [], [])


def test_a_larger_budget_goes_further_and_a_smaller_one_less(tmp_path: Path) -> None:
    few, _ = resumed(tmp_path / "j", budget=5)
    more, asked = resumed(tmp_path / "j", budget=9)
    assert more.tried[:5] == few.tried and len(asked) == 4
    assert more == search(score, MIXED, budget=9)
    assert resumed(tmp_path / "j", budget=5) == (few, [])


def test_a_grid_goes_on(tmp_path: Path) -> None:
    space = {"k": [1, 2, 3], "scope": ["model", "tensor"]}
    path = tmp_path / "new" / "journal"
    first = search(lambda s: s["k"], space, budget=4, sampler="grid", start={"k": 3, "scope": "tensor"}, path=path)
    evaluate = Counted(lambda s: s["k"])
    found = search(evaluate, space, start={"k": 3, "scope": "tensor"}, path=path)
    assert found.tried[:4] == first.tried and len(evaluate.asked) == 2
    assert found.best == {"k": 3, "scope": "tensor"}


def test_an_evaluation_that_fails_is_not_noted(tmp_path: Path) -> None:
    calls = itertools.count()

    def fails(s: Settings) -> float:
        if next(calls) == 3:
            raise OSError("the disk of the validation data is gone")
        return score(s)

    with pytest.raises(OSError, match="is gone"):
        search(fails, MIXED, budget=6, path=tmp_path / "j")
    assert len((tmp_path / "j").read_text().splitlines()) == 1 + 3
    assert search(fails, MIXED, budget=6, path=tmp_path / "j") == search(score, MIXED, budget=6)
    assert next(calls) == 4 + 3


def test_a_line_that_the_disk_has_no_room_for(tmp_path: Path) -> None:
    """The write is cut in half by a limit on the size of files."""
    path, limits = tmp_path / "j", resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = itertools.count()

    def fills(s: Settings) -> float:
        if next(calls) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
        return score(s)

    try:
        with pytest.raises(InputError, match=r"j: cannot be written"):
            search(fills, MIXED, budget=5, path=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.read_bytes().endswith(b"\n")
    assert resumed(path, budget=5)[0] == search(score, MIXED, budget=5)


def test_a_journal_that_is_taken_away(tmp_path: Path) -> None:
    def takes(s: Settings) -> float:
        (tmp_path / "j").unlink()
        return score(s)

    with pytest.raises(InputError, match=r"j: cannot be written \(No such file"):
        search(takes, MIXED, budget=5, path=tmp_path / "j")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "whose seed is 0, here 1"),
        ({"sampler": "grid", "space": {"k": [1]}}, 'whose sampler is "evolution", here "grid"'),
        ({"start": {"weight": [1, 1], "gamma": 1, "k": 1, "scope": "model"}}, "whose start is null, here {"),
        ({"space": MIXED | {"k": [1, 2, 3]}}, r"whose range or choices of 'k' is \[1, 2, 3, 4\], here \[1, 2, 3\]"),
        ({"space": MIXED | {"weight": Range(0.5, 1.4, count=2)}}, "whose range or choices of 'weight' is .*1.5.*here .*1.4"),
        ({"space": dict(reversed(MIXED.items()))}, "whose order of settings is "),
        ({"space": MIXED | {"more": [1]}}, "whose space is "),
    ],
)
def test_the_journal_of_another_search(changed: Settings, message: str, tmp_path: Path) -> None:
    resumed(tmp_path / "j", budget=3)
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(InputError, match=f"j: the journal of another search, {message}") as error:
        search(score, **{"space": MIXED, "budget": 5, "path": tmp_path / "j"} | changed)
    assert "\n" not in str(error.value)
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (3, '{"settings": {"k": 9}, "score": 1.0}\n', "line 3: .*expected a score of the settings"),
        (2, '{"settings": {"k": 9}}\n', "line 2: expected settings and a score"),
        (4, '{"settings": {"k": 9}, "score": "high"}\n', "line 4: expected settings and a score"),
        (4, '{"settings": {"k":\n', "line 4: not valid JSON"),
        (4, "[1]\n", "line 4: expected a JSON object"),
        (4, "\xff\n", "line 4: not valid JSON"),
        (1, '{"steps": 100}\n', "no journal of a search"),
        (1, '{"search": "polytask search 0"}\n', "no journal of a search"),
    ],
)
def test_a_changed_journal_is_refused(line: int, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "j"
    resumed(path, budget=5)
    lines = path.read_text().splitlines(keepends=True)
    path.write_bytes("".join([*lines[: line - 1], text, *lines[line:]]).encode("latin-1"))
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"j: {message}") as error:
        resumed(path, budget=8)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_no_journal_but_a_beginning_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("no line ends here")
    with pytest.raises(InputError, match="no journal of a search"):
        resumed(tmp_path / "j")
    with pytest.raises(InputError, match="cannot be read"):
        resumed(tmp_path)


# optuna


def test_optuna_searches(capfd: pytest.CaptureFixture[str]) -> None:
    optuna = pytest.importorskip("optuna")
    talk = optuna.logging.get_verbosity()
    found = search(score, MIXED, budget=40, sampler="optuna")
    assert found == search(score, MIXED, budget=40, sampler="optuna")
    assert found != search(score, MIXED, budget=40, sampler="optuna", seed=1)
    assert all(inside(axis, s[name]) for s, _ in found.tried for name, axis in MIXED.items())
    assert len({json.dumps(s) for s, _ in found.tried}) == 40
    assert found.score > sorted(value for _, value in found.tried)[20] and found.score > -0.4
    assert optuna.logging.get_verbosity() == talk and capfd.readouterr() == ("", "")


def test_optuna_tries_all_there_is() -> None:
    pytest.importorskip("optuna")
    space = {"a": [1, 2, 3, 4], "b": ["x", "y", "z"], "c": [None]}
    found = search(lambda s: -s["a"], space, sampler="optuna")
    assert len({json.dumps(s) for s, _ in found.tried}) == 12


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(spaces, st.integers(0, 2**32 - 1))
def test_optuna_stays_within_the_bounds(space: Any, seed: int) -> None:
    pytest.importorskip("optuna")
    evaluate = Counted(lambda s: Random(json.dumps(s)).random())
    found = search(evaluate, space, budget=15, sampler="optuna", seed=seed)
    assert len(found.tried) == len(set(evaluate.asked))
    assert all(inside(axis, s[name]) for s, _ in found.tried for name, axis in space.items())


def test_another_optuna_may_propose_other_settings(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    resumed(tmp_path / "j", "optuna", 3)
    text = (tmp_path / "j").read_text()
    (tmp_path / "j").write_text(text.replace(f"optuna {optuna.__version__}", "optuna 4.0.0", 1))
    with pytest.raises(InputError, match=f'whose sampler is "optuna 4.0.0", here "optuna {optuna.__version__}"'):
        resumed(tmp_path / "j", "optuna", 3)


def test_optuna_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"pip install 'polytask\[search\]'"):
        search(score, MIXED, budget=3, sampler="optuna")


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"space": {}}, "nothing to search"),
        ({"space": {"a": []}}, "setting 'a' has no choices"),
        ({"space": {"a": "model"}}, "setting 'a': 'model', expected a Range or a list of choices"),
        ({"space": {"a": 0.5}}, "setting 'a': 0.5, expected a Range or a list of choices"),
        ({"space": {"a": [1, 2, 1]}}, "setting 'a' has the choice 1 twice"),
        ({"space": {"a": [math.nan]}}, "setting 'a': choice nan, expected a value that JSON has"),
        ({"space": {"a": [{1}]}}, r"setting 'a': choice \{1\}, expected a value that JSON has"),
        ({"budget": 0}, "budget 0: expected at least 1"),
        ({"budget": None}, "no budget: expected one, since setting 'weight' is a range"),
        ({"space": {"a": list(range(200)), "b": list(range(200))}, "budget": None}, "since there are 40,000 settings"),
        ({"sampler": "random"}, "sampler 'random': expected 'auto', 'grid', 'evolution' or 'optuna'"),
        ({"sampler": "grid"}, "sampler 'grid': setting 'weight' is a range, expected choices"),
        ({"start": {"k": 1}}, "setting 'gamma' is not in both the start and the space"),
        ({"space": {"a": [1]}, "start": {"a": 1, "b": 2}}, "setting 'b' is not in both"),
        ({"space": {"a": [1, 2]}, "start": {"a": 3}}, "start: a 3: expected one of 1, 2"),
        ({"space": {"a": Range(0, 1)}, "start": {"a": 1.5}}, "start: a 1.5: expected a number from 0 to 1"),
        ({"space": {"a": Range(0, 1)}, "start": {"a": math.nan}}, "start: a nan: expected a number from 0 to 1"),
        ({"space": {"a": Range(0, 1, count=2)}, "start": {"a": [1]}}, r"start: a \[1\]: expected 2 numbers from 0 to 1"),
        ({"space": {"a": Range(0, 1, count=1)}, "start": {"a": 1}}, "start: a 1: expected 1 numbers from 0 to 1"),
    ],
)
def test_mistakes(arguments: Settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(lambda s: pytest.fail("evaluated"), **{"space": MIXED, "budget": 5} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 1), "a range from 1 to 1"),
        ((2, 1), "a range from 2 to 1"),
        ((0, math.inf), "a range from 0 to inf"),
        ((math.nan, 1), "a range from nan to 1"),
        ((0, 1, 0), "a range of 0 numbers"),
        ((0, 1, None, True), "a logarithmic range from 0 to 1"),
    ],
)
def test_mistaken_ranges(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Range(*arguments)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "score nan, expected a finite number"),
        (-math.inf, "score -inf, expected a finite number"),
        (None, "score NoneType, expected a number"),
        (torch.zeros(2), "score Tensor, expected a number"),
    ],
)
def test_scores_are_finite_numbers(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f'settings {{"k": 1}} {message}'):
        search(lambda s: value, {"k": [1, 2]}, path=tmp_path / "j")
    assert len((tmp_path / "j").read_text().splitlines()) == 1
