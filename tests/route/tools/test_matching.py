"""The rule by which a function call counts as right."""

import pytest

from polytask.route.tools import Document, Parameter, matches, parse_call
from polytask.route.tools.matching import normalised

DOCUMENT = Document(
    "area",
    (
        Parameter("base", "integer", required=True),
        Parameter("height", "number", required=True),
        Parameter("unit", "string"),
        Parameter("shape", "object", fields=(Parameter("kind", "string"), Parameter("sides", "integer"))),
        Parameter("tags", "array"),
        Parameter("round", "boolean"),
    ),
)
TRUTH = {
    "area": {
        "base": [10],
        "height": [5, 6.5],
        "unit": ["units", "New York, NY", ""],
        "shape": [{"kind": ["flat"], "sides": [3, ""]}, ""],
        "tags": [["a", "B c"], ""],
        "round": [True, ""],
    }
}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("area(base=10, height=5)", True),
        ("area(10, 5)", True),
        ("area(base=10, height=5.0)", True),  # 5 and 5.0 are one number, where a number is expected
        ("area(base=10, height=6.5, unit='UNITS')", True),
        ("area(base=10, height=5, unit='new york ny')", True),
        ("area(base=10, height=5, unit='new york')", False),
        ("area(base=10, height=5, unit='')", False),  # a gap is no value
        ("area(base=10.0, height=5)", False),  # a number where an integer is expected
        ("area(base=11, height=5)", False),
        ("area(height=5)", False),
        ("area(base=10, height=5, colour='red')", False),
        ("Area(base=10, height=5)", False),
        ("area(base=10, height=5, shape={'kind': 'Flat', 'sides': 3})", True),
        ("area(base=10, height=5, shape={'kind': 'flat'})", True),
        ("area(base=10, height=5, shape={'sides': 3})", False),
        ("area(base=10, height=5, shape={'kind': 'flat', 'more': 1})", False),
        ("area(base=10, height=5, tags=['A', 'b-c'])", True),
        ("area(base=10, height=5, tags=['b-c', 'A'])", False),
        ("area(base=10, height=5, round=True)", True),
        ("area(base=10, height=5, round=1)", False),
    ],
)
def test_a_call_is_right_or_wrong(text: str, right: bool) -> None:
    assert matches(parse_call(text), TRUTH, DOCUMENT) is right


def test_strings_are_compared_without_case_spaces_and_punctuation() -> None:
    assert normalised(" A,b.c/d-e_f*g^h'i\"J ") == "abcdefghij"
