"""Methods by name."""

from __future__ import annotations

import pytest

from polytask.balance import Balancer, balancers
from polytask.errors import InputError
from polytask.method import Method, parse_methods
from polytask.share import Sharing, sharings


@pytest.mark.parametrize("sharing", sharings)
@pytest.mark.parametrize("balance", balancers)
def test_every_pair_has_a_name_that_names_it(sharing: str, balance: str) -> None:
    method = Method(sharing, balance)
    assert Method.parse(method.name) == Method.parse(f"{balance}+{sharing}") == method
    assert Method.parse(sharing) == Method(sharing, "equal")
    assert Method.parse(balance) == Method("hard", balance)
    assert isinstance(method.build_sharing(), Sharing) and isinstance(method.build_balancer(), Balancer)
    assert method.build_balancer() is not method.build_balancer()


def test_no_name_means_a_sharing_and_a_balancer() -> None:
    assert not set(sharings) & set(balancers)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mmoe+uncertanty", "unknown method 'uncertanty' in 'mmoe\\+uncertanty': did you mean 'uncertainty'"),
        ("hard+mmoe", "names two of one kind: 'hard' and 'mmoe'"),
        ("equal+equal", "names two of one kind"),
        ("", "unknown method ''"),
        ("mmoe+", "unknown method '' in 'mmoe\\+'"),
        ("all-balancer", "did you mean 'all-balancers'"),
    ],
)
def test_other_names_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_methods([text])


def test_groups_stand_for_many_and_each_method_comes_once() -> None:
    every = parse_methods(["all"])
    assert len(every) == len(set(every)) == len(sharings) * len(balancers)
    assert parse_methods(["all-sharing"]) == [Method(s, "equal") for s in sharings]
    assert parse_methods(["all-balancers"]) == [Method("hard", b) for b in balancers]
    assert parse_methods(["uncertainty", "all-balancers", "hard+uncertainty"]) == [
        Method("hard", "uncertainty"),
        *(Method("hard", b) for b in balancers if b != "uncertainty"),
    ]
    assert parse_methods([]) == []
