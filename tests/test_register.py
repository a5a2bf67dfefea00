"""A register holds each name once, in the order of registration, and suggests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.errors import InputError
from polytask.register import Register


@given(st.lists(st.text(max_size=4), unique=True, max_size=6))
def test_it_is_a_mapping_in_order(names: list[str]) -> None:
    register: Register[int] = Register("number")
    for i, name in enumerate(names):
        assert register.add(name)(i) == i
    assert list(register) == names and len(register) == len(names)
    assert list(register.items()) == [(name, i) for i, name in enumerate(names)]
    assert all(name in register and register[name] == i for i, name in enumerate(names))
    assert "another" not in register and 3 not in register


def test_a_decorator_gives_back_what_it_enrols() -> None:
    register: Register[type] = Register("balancer")

    @register.add("equal")
    class Equal: ...

    assert register["equal"] is Equal


def test_a_name_is_given_once() -> None:
    register: Register[int] = Register("balancer")
    register.add("equal")(1)
    with pytest.raises(InputError, match="the balancer 'equal' is registered twice"):
        register.add("equal")(2)
    assert register["equal"] == 1


def test_an_unknown_name_is_an_error_in_the_registers_words() -> None:
    register: Register[int] = Register("way of sharing")
    register.add("hard")(1)
    with pytest.raises(InputError, match="unknown way of sharing 'hrad': did you mean 'hard'"):
        register["hrad"]
    with pytest.raises(InputError, match="unknown way of sharing 'xyz': known: hard"):
        register["xyz"]
