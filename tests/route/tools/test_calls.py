"""The grammar of calls: literals and references, nothing that is evaluated."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.route.tools.tools import file_documents

from polytask.errors import InputError
from polytask.route.tools import Call, Document, Parameter, Reference, bind, mismatch, parse_call
from polytask.route.tools.calls import resolve

OPEN = file_documents()[0]
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))
names = st.from_regex(r"[a-z]{1,5}_", fullmatch=True)


@settings(max_examples=40)
@given(st.lists(names, min_size=1, max_size=3), st.lists(values, max_size=2), st.dictionaries(names, values, max_size=3))
def test_what_is_written_is_read_again(name: list[str], positional: list[object], named: dict[str, object]) -> None:
    call = Call(".".join(name), tuple(positional), named, "step1")
    assert parse_call(str(call)) == call


@given(values)
def test_a_literal_is_what_python_takes_it_for(value: object) -> None:
    text = repr(value)
    assert parse_call(f"f({text})").positional == (ast.literal_eval(text),)


def test_references_and_their_paths() -> None:
    call = parse_call('out = a.b.f(step1, other=[step2["x"][0], {"k": step3}], n=-2.5)')
    assert call == Call(
        "a.b.f",
        (Reference("step1"),),
        {"other": [Reference("step2", ("x", 0)), {"k": Reference("step3")}], "n": -2.5},
        "out",
    )
    assert call.needs() == {"step1", "step2", "step3"}
    results = {"step1": 1, "step2": {"x": ["step3"]}, "step3": "f(step1)"}
    assert resolve(call.named["other"], results) == ["step3", {"k": "f(step1)"}], "text in a result stays text"
    with pytest.raises(InputError, match="no 'y' in the result of step2"):
        Reference("step2", ("y",)).of(results)
    with pytest.raises(InputError, match="no result of that name"):
        Reference("step9").of(results)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f",
        "f()()",
        "f(); g()",
        "f(\n",
        "x = y = f()",
        "x.y = f()",
        "import os",
        "f(**{'a': 1})",
        "f(*[1])",
        "f(1 + 1)",
        "f(-x)",
        "f(not True)",
        "f(a.b)",
        "f(g())",
        "f(lambda: 0)",
        "f([i for i in x])",
        "f(f'{x}')",
        "f(x if y else z)",
        "f(b'a')",
        "f(1j)",
        "f(...)",
        "f({x: 1})",
        "f({**x})",
        "f({1, 2})",
        "f(x[y])",
        "f(x[1:2])",
        "f('a'[0])",
        "f(-True)",
        "f(x := 3)",
        "__import__('os').system('true')",
        "(lambda: 0)()",
        "f[0](1)",
        "f(" + "[" * 500 + "]" * 500 + ")",
        "f(" * 2000,
        "f('\0')",
        "f('" + "a" * 30_000 + "')",
        "await f()",
        "f(yield)",
        "del f(1)",
        "f(a=1, a=2)",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_call(text)
    assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)


def test_positional_arguments_are_bound_in_the_documents_order() -> None:
    assert bind(parse_call("open_local_file('a', 'w')"), OPEN) == {"file_path": "a", "mode": "w"}
    assert bind(parse_call("open_local_file(mode='r', file_path='a')"), OPEN) == {"mode": "r", "file_path": "a"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("open_local_file()", "'file_path' is missing, expected a string"),
        ("open_local_file('a', 'w', 3)", "3 arguments, expected at most 2"),
        ("open_local_file('a', file_path='b')", "'file_path' is given twice"),
        ("open_local_file('a', mod='r')", "unknown parameter 'mod': did you mean 'mode'"),
        ("open_local_file(3)", "file_path: 3, expected a string"),
        ("open_local_file('a', 'x')", "mode: 'x', expected one of 'r', 'w'"),
        ("open_local_file(step2)", "'step2' is not an earlier result: did you mean 'step1'"),
        ("open_local_file(step1)", "step1 is of type integer, expected string"),
        ("open_local_file(None)", "None, expected a string"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        bind(parse_call(text), OPEN, {"step1": Parameter("n", "integer")})


def test_types() -> None:
    fine = {
        "string": ["a", ""],
        "integer": [1, -1],
        "number": [1, -1, 2.5],
        "boolean": [True],
        "array": [[], (1,)],
        "object": [{}],
        "any": ["a", "", 1, -1, 2.5, True, [], (1,), {}],
    }
    for kind, some in fine.items():
        for value in fine["any"]:
            accepted = any(value is one for one in some) or value in ((1, -1) if kind in ("integer", "number") else ())
            wanted = accepted and not (isinstance(value, bool) and kind in ("integer", "number"))
            found = mismatch(value, Parameter("x", kind, required=True))
            assert (not found) == (wanted or any(type(value) is type(one) and value == one for one in some)), (kind, value)
    assert mismatch(True, Parameter("x", "integer")) and mismatch(True, Parameter("x", "number"))
    assert not mismatch(3, Parameter("x", "number")) and mismatch(3.0, Parameter("x", "integer"))
    assert not mismatch(None, Parameter("x", "integer")) and mismatch(None, Parameter("x", "integer", required=True))
    lists = Parameter("x", "array", items=Parameter("item", "object", fields=(Parameter("n", "integer", required=True),)))
    assert not mismatch([{"n": 1}, {"n": 2, "more": 3}], lists)
    assert mismatch([{"n": 1}, {"n": "2"}], lists) == "[1]['n']: '2', expected an integer"
    assert mismatch([{}], lists) == "[0]: 'n' is missing, expected an integer"
    assert isinstance(Document("f", (lists,)).signature(), str)
