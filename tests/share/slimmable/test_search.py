"""From preferences and budgets to widths."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.share.slimmable.networks import supernet

from polytask import InputError
from polytask.share.slimmable import WIDTHS, Configuration, Costs, decoder_widths, find_configuration

NAMES = ("classes", "edge", "depth")
COSTS = Costs(supernet(), torch.empty(1, 1, 8, 8))
STAGES = Costs(supernet(per_stage=True), torch.empty(1, 1, 8, 8))
SMALLEST, LARGEST = (COSTS(getattr(COSTS.supernet, which)) for which in ("smallest", "largest"))

preferences = st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any)


def noise(configuration: Configuration) -> float:
    """A score without any sense, always the same for a configuration."""
    return random.Random(repr((configuration.encoder, sorted(configuration.decoders.items())))).random()


def narrowest(configuration: Configuration) -> float:
    return -float(COSTS.encoder(configuration.encoder))


def widest(configuration: Configuration) -> float:
    return float(COSTS.encoder(configuration.encoder))


def test_one_task_alone_gets_the_widest_decoder_and_the_others_the_narrowest() -> None:
    assert decoder_widths({"a": 0, "b": 3.0, "c": 0}, WIDTHS) == {"a": 0.25, "b": 1.0, "c": 0.25}
    assert decoder_widths({"a": 0.2, "b": 0.2}, WIDTHS) == {"a": 1.0, "b": 1.0}
    assert decoder_widths({"a": 1.0, "b": 0.5, "c": 0.3}, (0.2, 1.0)) == {"a": 1.0, "b": 1.0, "c": 0.2}  # 0.6: the larger
    assert decoder_widths({"a": 1.0, "b": 0.34}, WIDTHS) == {"a": 1.0, "b": 0.5}  # 0.505


@given(preferences, st.permutations(range(3)), st.floats(0.1, 10))
def test_widths_go_with_preferences_whatever_order_and_scale(values: list[int], order: list[int], scale: float) -> None:
    found = decoder_widths(dict(zip(NAMES, values, strict=True)), WIDTHS)
    for one, other in itertools.permutations(range(3), 2):
        if values[one] >= values[other]:
            assert found[NAMES[one]] >= found[NAMES[other]]
    assert max(found.values()) == 1.0
    permuted = decoder_widths({NAMES[i]: scale * values[i] for i in order}, WIDTHS)
    assert permuted == found


@given(preferences, st.integers(SMALLEST, LARGEST))
def test_what_is_found_fits_and_is_the_best_that_fits(values: list[int], budget: int) -> None:
    preference = dict(zip(NAMES, values, strict=True))
    found = find_configuration(COSTS, preference, budget, noise)
    assert COSTS(found) <= budget
    fitting = [Configuration(encoder, found.decoders) for encoder in WIDTHS]
    assert noise(found) == max(noise(a) for a in fitting if COSTS(a) <= budget)
    wanted = decoder_widths(preference, WIDTHS)
    if COSTS(Configuration(0.25, wanted)) <= budget:
        assert found.decoders == wanted
    else:
        assert all(found.decoders[name] <= wanted[name] for name in NAMES)


@given(preferences, st.integers(SMALLEST, LARGEST), st.integers(SMALLEST, LARGEST))
def test_a_larger_budget_is_never_worse(values: list[int], one: int, other: int) -> None:
    """As long as the decoders that are wanted fit: below that they differ, and a score of noise cannot be compared."""
    preference = dict(zip(NAMES, values, strict=True))
    enough = COSTS(Configuration(0.25, decoder_widths(preference, WIDTHS)))
    low, high = (find_configuration(COSTS, preference, max(enough, b), noise) for b in sorted((one, other)))
    assert noise(low) <= noise(high)


def test_tasks_that_are_permuted_permute_the_answer() -> None:
    """Decoders of equal cost: two tasks with as many outputs."""
    budget = (SMALLEST + LARGEST) // 2
    for values in itertools.product((0, 1, 2), repeat=3):
        if not any(values):
            continue
        preference = dict(zip(NAMES, values, strict=True))
        found = find_configuration(COSTS, preference, budget, widest)
        swapped = {**preference, "edge": preference["depth"], "depth": preference["edge"]}
        other = find_configuration(COSTS, swapped, budget + 2000, widest)  # depth has one output more than edge
        if COSTS(found) + 2000 <= budget:
            assert other.decoders["edge"] == found.decoders["depth"] and other.decoders["depth"] == found.decoders["edge"]


def test_decoders_give_way_from_the_least_preferred_and_equal_ones_together() -> None:
    preference = {"classes": 2.0, "edge": 1.0, "depth": 1.0}
    wanted = decoder_widths(preference, WIDTHS)
    assert wanted == {"classes": 1.0, "edge": 0.75, "depth": 0.75}

    def found(budget: int) -> Configuration:
        chosen = find_configuration(COSTS, preference, budget, narrowest)
        assert chosen.encoder == 0.25
        return chosen

    def cost(classes: float, others: float) -> int:
        return COSTS(Configuration(0.25, {"classes": classes, "edge": others, "depth": others}))

    assert found(cost(1.0, 0.75)).decoders == wanted
    assert found(cost(1.0, 0.75) - 1).decoders == {"classes": 1.0, "edge": 0.5, "depth": 0.5}
    assert found(cost(1.0, 0.25) - 1).decoders == {"classes": 0.75, "edge": 0.25, "depth": 0.25}
    assert found(SMALLEST) == COSTS.supernet.smallest


def test_of_equally_good_encoders_it_is_the_larger() -> None:
    assert find_configuration(COSTS, dict.fromkeys(NAMES, 1.0), LARGEST, lambda _: 0.0) == COSTS.supernet.largest


def test_stages_are_widened_one_by_one_where_it_gains_most() -> None:
    preference = dict.fromkeys(NAMES, 1.0)

    def second(configuration: Configuration) -> float:
        assert isinstance(configuration.encoder, tuple)
        return 2 * configuration.encoder[1] + configuration.encoder[0]

    found = find_configuration(STAGES, preference, STAGES(STAGES.supernet.largest), second)
    assert found.encoder == (1.0, 1.0)
    budget = STAGES(Configuration((0.25, 1.0), dict.fromkeys(NAMES, 1.0)))
    greedy = find_configuration(STAGES, preference, budget, second)
    assert greedy.encoder == (0.25, 1.0) and STAGES(greedy) <= budget
    assert second(find_configuration(STAGES, preference, budget, second, method="exhaustive")) >= second(greedy)
    # What is best on the way is kept, not where the way ends.
    peak = find_configuration(STAGES, preference, LARGEST, lambda a: -abs(second(a) - 1.25))
    assert second(peak) == 1.25


@given(preferences, st.integers(SMALLEST, LARGEST))
def test_greedy_search_keeps_the_budget_and_the_whole_search_is_as_good(values: list[int], budget: int) -> None:
    preference = dict(zip(NAMES, values, strict=True))
    greedy = find_configuration(STAGES, preference, budget, noise)
    whole = find_configuration(STAGES, preference, budget, noise, method="exhaustive")
    assert STAGES(greedy) <= budget and STAGES(whole) <= budget and noise(whole) >= noise(greedy)
    assert find_configuration(COSTS, preference, budget, widest, "greedy") == find_configuration(
        COSTS, preference, budget, widest
    )


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=f"budget {SMALLEST - 1}: the smallest configuration costs {SMALLEST}"):
        find_configuration(COSTS, dict.fromkeys(NAMES, 1.0), SMALLEST - 1, widest)
    with pytest.raises(InputError, match=r"preferences for \['edge'\], expected one for each task"):
        find_configuration(COSTS, {"edge": 1.0}, LARGEST, widest)
    with pytest.raises(InputError, match=r"preference -1\.0 for task 'edge'"):
        find_configuration(COSTS, {"classes": 1.0, "edge": -1.0, "depth": 1.0}, LARGEST, widest)
    with pytest.raises(InputError, match="expected one above 0"):
        find_configuration(COSTS, dict.fromkeys(NAMES, 0.0), LARGEST, widest)
    with pytest.raises(InputError, match="is nan, expected a finite number"):
        find_configuration(COSTS, dict.fromkeys(NAMES, 1.0), LARGEST, lambda _: float("nan"))
    with pytest.raises(InputError, match="method 'evolution', expected 'exhaustive' or 'greedy'"):
        find_configuration(COSTS, dict.fromkeys(NAMES, 1.0), LARGEST, widest, method="evolution")  # type: ignore[arg-type]
