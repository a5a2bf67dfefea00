"""Documents: the five fields, and that JSON carries them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.route.tools.tools import file_documents

from polytask.errors import InputError
from polytask.route.tools import Document, Endpoint, Parameter
from polytask.route.tools.document import TYPES, words_of

plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
names = st.from_regex(r"[a-z_][a-z_0-9]{0,8}", fullmatch=True)
parameters = st.builds(
    Parameter,
    names,
    st.sampled_from(TYPES),
    st.text(max_size=9),
    st.booleans(),
    plain,
    st.lists(st.integers() | st.text(max_size=3), max_size=3).map(tuple),
)


@given(names, st.lists(parameters, max_size=4, unique_by=lambda p: p.name), st.text(max_size=20), st.booleans(), parameters)
def test_json_carries_a_document(name: str, taken: list[Parameter], text: str, flag: bool, gives: Parameter) -> None:
    endpoint = Endpoint("GET", "http://a/{x}", {"x": "path"}) if flag else None
    nested = (*taken, Parameter("inside_of_it", "object", fields=(gives,), items=gives))
    document = Document(name, nested, text, gives, (text,), text, text, flag, endpoint)
    again = Document.from_json(document.to_json())
    assert again.to_json() == document.to_json() and again == document


def test_what_is_no_document_is_refused() -> None:
    for text in (
        "",
        "[]",
        "{",
        '{"name": 3}',
        '{"nom": "a"}',
        json.dumps({"name": "a", "parameters": [{"type": "string"}]}),
    ):
        with pytest.raises(InputError):
            Document.from_json(text)
    for name in ("", "a b", "a..b", "1a", "a()"):
        with pytest.raises(InputError, match="API name"):
            Document(name)
    with pytest.raises(InputError, match="two parameters are called 'a'"):
        Document("f", (Parameter("a"), Parameter("a")))
    with pytest.raises(InputError, match="did you mean 'integer'"):
        Parameter("a", "intege")
    with pytest.raises(InputError, match="did you mean 'file_path'"):
        file_documents()[0].parameter("file_pat")


def test_names_become_words() -> None:
    assert words_of("getUserByID") == "get User By ID"
    assert words_of("HTTPServer_list.all-of/it") == "HTTP Server list all of it"
    assert words_of("") == ""


def test_a_signature_is_what_a_prompt_needs() -> None:
    opened = file_documents()[0]
    assert opened.signature() == 'open_local_file(file_path: string, mode: "r" | "w" = "r") -> object'
    assert "open local file" in opened.columns()["name"] and "close local file" in opened.columns()["description"]
    assert opened.but(examples=("show me x",)).texts()[1:] == ["show me x"]
