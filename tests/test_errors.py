"""Errors name what was meant, and what to install."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.errors import InputError, MissingExtra, PolytaskError, TrainingError, optional, suggest


def test_kinds_of_error_are_what_python_knows_too() -> None:
    assert issubclass(InputError, ValueError) and issubclass(TrainingError, RuntimeError)
    assert issubclass(MissingExtra, ImportError)
    assert all(issubclass(kind, PolytaskError) for kind in (InputError, TrainingError, MissingExtra))


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True), st.data())
def test_a_known_name_is_nearest_to_itself(known: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(known))
    assert suggest(name, known) == f"did you mean {name!r}?"


@given(st.text(max_size=8))
def test_a_suggestion_is_a_known_name(name: str) -> None:
    known = ["equal", "uncertainty", "fixed"]
    text = suggest(name, known)
    assert text == "known: equal, uncertainty, fixed" or any(text == f"did you mean {k!r}?" for k in known)


@pytest.mark.parametrize(("typo", "meant"), [("uncertanty", "uncertainty"), ("equl", "equal"), ("fixd", "fixed")])
def test_typing_errors_are_recognised(typo: str, meant: str) -> None:
    assert suggest(typo, iter(["equal", "uncertainty", "fixed"])) == f"did you mean {meant!r}?"


def test_optional_gives_the_module_or_says_what_to_install() -> None:
    assert optional("json.decoder", "text").__name__ == "json.decoder"
    with pytest.raises(MissingExtra, match=r"needs the package 'no_such_package': pip install 'polytask\[graph\]'"):
        optional("no_such_package.part", "graph")
