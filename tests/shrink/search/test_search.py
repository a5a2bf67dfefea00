"""Every strategy, by its name and on a problem that can be counted out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tests.shrink.search.problems import OBJECTIVES, REFERENCE, SPACE, STRATEGIES, evaluate, sometimes

from polytask.errors import InputError
from polytask.pareto import fronts
from polytask.shrink.search import LINAS, NSGA2, Found, Random, Space, Trial, reduce_space, search, strategies
from polytask.shrink.search.found import signed


def test_all_strategies_are_known_by_name() -> None:
    assert set(strategies) == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_network_is_measured_twice_and_the_seed_decides(name: str) -> None:
    asked: list[str] = []

    def counted(configuration: dict[str, Any]) -> dict[str, float]:
        asked.append(json.dumps(configuration))
        return sometimes(configuration)

    settings: dict[str, Any] = {"budget": 40, "strategy": STRATEGIES[name]}
    found = search(SPACE, counted, OBJECTIVES, **settings)
    assert len(asked) == len(set(asked)) == len(found.trials) == 40
    assert found.failed and found.measured and len(found.failed) + len(found.measured) == 40
    assert search(SPACE, sometimes, OBJECTIVES, **settings).trials == found.trials
    assert search(SPACE, sometimes, OBJECTIVES, seed=1, **settings).trials != found.trials


@pytest.mark.parametrize("name", ["random", "nsga2", "age_moea", "linas"])
def test_a_small_space_is_searched_to_its_end(name: str) -> None:
    small = SPACE.restricted({"w0": [2, 3], **{f"w{i}": [2] for i in range(1, 7)}})
    found = search(small, evaluate, OBJECTIVES, budget=1000, strategy=STRATEGIES[name])
    assert len(found.trials) == small.size == 2 * (1 + 1 + 4)


def test_what_predicts_and_what_selects_is_ahead_of_chance() -> None:
    reached = {}
    for name in ("random", "nsga2", "age_moea", "linas"):
        settings: dict[str, Any] = {"budget": 60, "strategy": STRATEGIES[name]}
        reached[name] = np.array(
            [search(SPACE, evaluate, OBJECTIVES, seed=seed, **settings).hypervolume(REFERENCE) for seed in range(3)]
        )
    assert (reached["linas"] > reached["random"]).all()
    assert reached["nsga2"].mean() > reached["random"].mean() < reached["age_moea"].mean()


def test_a_search_begins_with_what_it_is_given_and_goes_on_from_there() -> None:
    before = search(SPACE, evaluate, OBJECTIVES, budget=150, strategy=STRATEGIES["linas"])
    best = before.best(10)

    def elsewhere(configuration: dict[str, Any]) -> dict[str, float]:
        """Other hardware: everything takes twice as long, and the first block is free."""
        found = evaluate(configuration)
        return {**found, "cost": 2 * found["cost"] - 6 * configuration["w0"] ** 2}

    for name in ("linas", "nsga2", "random"):
        settings: dict[str, Any] = {"budget": 20, "strategy": STRATEGIES[name]}
        cold = search(SPACE, elsewhere, OBJECTIVES, **settings)
        warm = search(SPACE, elsewhere, OBJECTIVES, start=best, **settings)
        assert [trial.configuration for trial in warm.trials[:10]] == best
        assert warm.hypervolume(REFERENCE, 10) > cold.hypervolume(REFERENCE, 10)


def test_fronts_and_the_best_of_what_was_found() -> None:
    found = search(SPACE, sometimes, OBJECTIVES, budget=80, strategy="random")
    rows = signed([trial.values for trial in found.measured], OBJECTIVES)
    assert (rows == found.values()).all()
    front = found.front()
    assert signed([trial.values for trial in front], OBJECTIVES).tolist() == sorted(rows[fronts(rows, 1)[0]].tolist())
    first = len(fronts(rows)[0])
    best = found.best(first + 2)
    assert all(trial.configuration in best[:first] for trial in front) and len(best) == first + 2
    whole = found.hypervolume(REFERENCE)
    assert whole == Found(OBJECTIVES, front).hypervolume(REFERENCE) >= found.hypervolume(REFERENCE, 10)
    point = Found({"a": "lower", "b": "higher"}, [Trial({}, {"a": 1.0, "b": 5.0}), Trial({}, {}, "failed")])
    assert point.hypervolume({"a": 4.0, "b": 3.0}) == (4 - 1) * (5 - 3)
    assert Found(OBJECTIVES, []).front() == Found(OBJECTIVES, []).best(3) == []
    with pytest.raises(InputError, match="no reference for 'cost': known: quality"):
        found.hypervolume({"quality": 0.0})


def test_workers_change_nothing() -> None:
    settings: dict[str, Any] = {"budget": 30, "strategy": STRATEGIES["linas"]}
    one = search(SPACE, sometimes, OBJECTIVES, **settings)
    assert search(SPACE, sometimes, OBJECTIVES, workers=2, **settings).trials == one.trials


def test_more_than_two_objectives_and_one() -> None:
    def three(configuration: dict[str, Any]) -> dict[str, float]:
        return {**evaluate(configuration), "depth": configuration["depth"]}

    for name in STRATEGIES:
        found = search(SPACE, three, {**OBJECTIVES, "depth": "lower"}, budget=45, strategy=STRATEGIES[name])
        assert len({trial.values["depth"] for trial in found.front()}) >= 2
        single = search(SPACE, evaluate, {"cost": "lower"}, budget=45, strategy=STRATEGIES[name])
        assert len(single.front()) == 1


def test_a_search_in_which_everything_fails_says_why() -> None:
    def broken(configuration: dict[str, Any]) -> dict[str, float]:
        raise RuntimeError("no network")

    for name, strategy in STRATEGIES.items():
        with pytest.raises(InputError, match="all 40 evaluations failed; the first: RuntimeError: no network"):
            search(SPACE, broken, OBJECTIVES, budget=40, strategy=strategy if name != "full_search" else "full_search")
    with pytest.raises(InputError, match="unknown search strategy 'nsga3': did you mean 'nsga2'"):
        search(SPACE, evaluate, OBJECTIVES, budget=10, strategy="nsga3")
    with pytest.raises(InputError, match="gene 'w0' is 9"):
        search(SPACE, evaluate, OBJECTIVES, budget=10, start=[{"depth": 4, "w0": 9}])
    with pytest.raises(InputError, match="0 inner generations"):
        LINAS(generations=0)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    search(SPACE, evaluate, OBJECTIVES, budget=25, strategy=Random(10), progress=lambda *at: told.append(at))
    assert told == [(10, 25), (20, 25), (25, 25)]


def test_a_space_is_reduced_to_where_a_search_went() -> None:
    """Two crowds near one another, with a third option now and then, and noise far from both of them."""
    space = Space({f"g{i}": range(8) for i in range(12)} | {"never": [1, 2]}, when={"never": {"g0": [7]}})
    random = np.random.default_rng(0)
    crowds = [np.where(random.random((150, 12)) < 0.05, 2, [crowd] * 3 + [0] * 9) for crowd in (0, 1)]
    noise = random.integers(3, 8, (30, 12))
    visited = [
        {f"g{i}": int(value) for i, value in enumerate(row)} | {"never": 1 if row[0] == 7 else None}
        for row in np.concatenate([*crowds, noise])
    ]
    reduced = reduce_space(space, visited)
    assert [reduced.genes[f"g{i}"] for i in range(12)] == 3 * [(0, 1, 2)] + 9 * [(0, 2)]
    assert reduced.genes["never"] == (1, 2) and reduced.size == 3**3 * 2**9
    strict = reduce_space(space, visited, threshold=0.2)
    assert [strict.genes[f"g{i}"] for i in range(12)] == 3 * [(0, 1)] + 9 * [(0,)]
    with pytest.raises(InputError, match=r"10 configurations and a threshold of 0\.01, expected at least 50"):
        reduce_space(space, visited[:10])
    one = reduce_space(space, visited[:150])  # a search may end in a single crowd
    assert all(one.genes[f"g{i}"] in ((0,), (0, 2)) for i in range(12))


def test_a_smaller_space_is_searched_as_well() -> None:
    finished = search(SPACE, evaluate, OBJECTIVES, budget=400, strategy=NSGA2(20))
    reduced = reduce_space(SPACE, [trial.configuration for trial in finished.trials], 20, 5, threshold=0.05)
    assert reduced.size < SPACE.size
    settings: dict[str, Any] = {"budget": 60, "strategy": STRATEGIES["random"]}
    whole, part = (search(space, evaluate, OBJECTIVES, **settings).hypervolume(REFERENCE) for space in (SPACE, reduced))
    assert part > whole
