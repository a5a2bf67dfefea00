"""Spaces against counting them out by hand."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.errors import InputError
from polytask.shrink.search import Space

BLOCKS = Space(
    {"depth": [2, 3, 4], **{f"k{i}": [3, 5, 7] for i in range(4)}, "head": ["small", "large"]},
    when={"k2": {"depth": [3, 4]}, "k3": {"depth": [4]}},
    implied=["depth"],
)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Up to five genes, of which later ones may depend on earlier ones, and these on others."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    genes = {f"g{i}": list(range(size)) for i, size in enumerate(sizes)}
    when: dict[str, dict[str, list[int]]] = {}
    for i in range(1, len(sizes)):
        for by in draw(st.sets(st.integers(0, i - 1), max_size=2)):
            when.setdefault(f"g{i}", {})[f"g{by}"] = draw(st.lists(st.sampled_from(genes[f"g{by}"]), unique=True))
    order = draw(st.permutations(list(genes)))
    return Space({name: genes[name] for name in order}, when)


def by_hand(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what is not used, gene by gene as the conditions are written."""

    def used(name: str) -> bool:
        return all(used(by) and values[by] in allowed for by, allowed in space.when.get(name, {}).items())

    return {name: value if used(name) else None for name, value in values.items()}


@settings(max_examples=40)
@given(spaces())
def test_every_row_is_the_configuration_that_the_conditions_say(space: Space) -> None:
    every = [dict(zip(space.genes, values, strict=True)) for values in itertools.product(*space.genes.values())]
    rows = np.array([[space.genes[name].index(value) for name, value in values.items()] for values in every])
    expected = [by_hand(space, values) for values in every]
    assert [space.configuration(row) for row in rows] == expected
    different = {json.dumps(each) for each in expected}
    assert space.size == len(different) == len(set(space.keys(rows)))
    for row, each, key, features in zip(rows, expected, space.keys(rows), space.features(rows), strict=True):
        again = space.row(each)
        assert space.canonical(row[None])[0].tolist() == again.tolist()
        assert space.keys(again[None]) == [key] and space.features(again[None])[0].tolist() == features.tolist()
        assert features.sum() == sum(value is not None for value in each.values())
    found = space.distinct(len(every), (), np.random.default_rng(0))
    assert sorted(space.keys(found)) == sorted(set(space.keys(rows)))
    known = space.keys(found)[: len(found) // 2]
    assert not set(space.keys(space.distinct(len(every), known, np.random.default_rng(0)))) & set(known)


def test_a_depth_that_blocks_tell_needs_no_features() -> None:
    rows = BLOCKS.sample(500, np.random.default_rng(0))
    features = BLOCKS.features(rows)
    assert features.shape == (500, 14)
    assert len(np.unique(features, axis=0)) == len(set(BLOCKS.keys(rows)))
    assert BLOCKS.size == 2 * (9 + 27 + 81)


def test_the_space_of_once_for_all_is_as_large_as_published() -> None:
    genes: dict[str, list[int]] = {}
    when = {}
    for stage in range(5):
        genes[f"d{stage}"] = [2, 3, 4]
        for block in range(4):
            for gene, options in (("k", [3, 5, 7]), ("e", [3, 4, 6])):
                genes[f"{gene}{stage}.{block}"] = options
                when[f"{gene}{stage}.{block}"] = {f"d{stage}": [d for d in (2, 3, 4) if d > block]}
    assert Space(genes, when).size == (9**2 + 9**3 + 9**4) ** 5  # 2.2e19


def test_each_option_is_as_likely_the_ends_too() -> None:
    rows = Space({"a": range(5), "b": range(2)}).sample(20_000, np.random.default_rng(0))
    for column, size in zip(rows.T, (5, 2), strict=True):
        assert np.bincount(column, minlength=size) / 20_000 == pytest.approx(np.full(size, 1 / size), abs=0.02)


def test_ignored_genes_are_filled_and_stay_the_same_network() -> None:
    rows = BLOCKS.canonical(BLOCKS.sample(50, np.random.default_rng(0)))
    filled = BLOCKS.filled(rows, np.random.default_rng(1))
    assert (rows < 0).any() and (filled >= 0).all() and BLOCKS.keys(filled) == BLOCKS.keys(rows)


def test_the_part_of_a_space() -> None:
    part = BLOCKS.restricted({"depth": [2, 3], "k0": [7]})
    assert part.size == 2 * 3 * (1 + 3) and part.configuration(part.sample(1, np.random.default_rng(0))[0])["k0"] == 7
    assert part.when == {"k2": {"depth": (3,)}, "k3": {"depth": ()}}
    with pytest.raises(InputError, match="gene 'k0' has no option 4"):
        BLOCKS.restricted({"k0": [4]})


@pytest.mark.parametrize(
    ("genes", "when", "message"),
    [
        ({}, {}, "nothing to search"),
        ({"a": []}, {}, "gene 'a' has 0 options"),
        ({"a": [1, 1]}, {}, "expected different ones"),
        ({"a": [None, 1]}, {}, "none of them None"),
        ({"a": [object()]}, {}, "expected values that JSON has"),
        ({"a": [1, 2], "b": [1]}, {"b": {"c": [1]}}, "unknown gene 'c'"),
        ({"a": [1, 2], "b": [1]}, {"b": {"a": [3]}}, "gene 'b': when 'a' is 3, which is none of its options"),
        ({"a": [1, 2], "b": [1]}, {"b": {"a": [1]}, "a": {"b": [1]}}, "gene 'a' decides on itself"),
    ],
)
def test_a_space_that_cannot_be_is_refused(genes: Any, when: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Space(genes, when)


def test_a_configuration_that_cannot_be_is_refused() -> None:
    whole = {"depth": 2, "k0": 3, "k1": 5, "head": "small"}
    assert BLOCKS.row(whole).tolist() == [0, 0, 1, -1, -1, 0]
    for changed, message in (
        ({"k0": 4}, r"gene 'k0' is 4, expected one of \[3, 5, 7\]"),
        ({"kernel": 3}, "unknown gene 'kernel'"),
        ({"head": None}, "gene 'head' has no value, but is used"),
        ({"depth": 3}, "gene 'k2' has no value, but is used"),
    ):
        with pytest.raises(InputError, match=message):
            BLOCKS.row({**whole, **changed})
