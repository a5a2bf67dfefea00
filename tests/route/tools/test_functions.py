"""Functions as documents."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from tests.route.tools.tools import weather

from polytask.errors import InputError
from polytask.route.tools import Parameter, document_of


def test_signature_and_docstring() -> None:
    document = document_of(weather, module="sky")
    assert document.parameters == (
        Parameter("city", "string", "where.", True),
        Parameter("days", "integer", "how many days ahead.", False, 1),
    )
    assert document.description == "Forecast the weather of a city." and document.module == "sky"
    assert document.returns == Parameter("result", "object", "Temperature in degrees and a word.")


def test_annotations_become_types() -> None:
    def f(
        a: list[float], b: Literal["x", "y"], c: int | None = None, d: int | str = 0, e: Sequence[int] = (), *, g: Any, h=3
    ):  # type: ignore[no-untyped-def]
        """Do it.

        Raises:
            ValueError: where it cannot.

        Example:
            >>> f([1.0], "x", g=1)
        """

    document = document_of(f, name="do.it", idempotent=False)
    assert [(p.type, p.required) for p in document.parameters] == [
        ("array", True),
        ("string", True),
        ("integer", False),
        ("any", False),
        ("array", False),
        ("any", True),
        ("any", False),
    ]
    assert document.parameters[0].items == Parameter("item", "number") and document.parameters[1].choices == ("x", "y")
    assert document.examples == ('f([1.0], "x", g=1)',) and "ValueError" in document.description
    assert (document.name, document.idempotent) == ("do.it", False)


def test_what_cannot_be_called_by_names_is_refused() -> None:
    for function in (lambda *a: 0, lambda **k: 0, abs):
        with pytest.raises(InputError, match="no name to call it by"):
            document_of(function, name="f")
