"""Planners: rules, and chat models behind a real server."""

from typing import Any

import pytest
from tests.route.tools.server import serving
from tests.route.tools.tools import double, file_documents, note, weather

from polytask.errors import InputError
from polytask.route import Endpoint
from polytask.route.tools import ChatPlanner, Parameter, Rules, Step, document_of, parse_call
from polytask.route.tools.calls import Reference
from polytask.route.tools.planning import fill


def test_a_request_is_split_at_its_sentences() -> None:
    steps = Rules().outline("Open the file 'a.b'. Read it; then double 3.5, then close step1.", [])
    assert [step.intent for step in steps] == ["Open the file 'a.b'", "Read it", "double 3.5", "close step1"]
    assert [step.needs for step in steps] == [(), ("step1",), (), ("step1",)]


def test_parameters_are_found_by_name_choice_reference_and_type() -> None:
    opened, read, *_ = file_documents()
    assert fill(Step("s", "open 'a.txt' with mode w"), opened, {}) == {"file_path": "a.txt", "mode": "w"}
    assert fill(Step("s", 'file path: "b c.txt"'), opened, {}) == {"file_path": "b c.txt"}
    assert fill(Step("s", "weather of city Ghent for 3 days"), document_of(weather), {}) == {"city": "Ghent", "days": 3}
    assert fill(Step("s", "Read it", ("step1",)), read, {"step1": Parameter("f", "object")}) == {"file": Reference("step1")}
    assert fill(Step("s", "Read it", ("step1",)), read, {"step1": Parameter("f", "integer")}) == {}
    assert fill(Step("s", "double -2.5"), document_of(double), {}) == {"number": -2.5}
    assert fill(Step("s", "factorial of version2 please"), file_documents()[3], {}) == {}


def test_the_first_document_that_can_be_filled_is_called_and_after_a_problem_the_next() -> None:
    documents = [file_documents()[1], document_of(double), file_documents()[4]]
    rules, step = Rules(), Step("step1", "take 4")
    rules.outline("x", [])
    assert rules.call(step, documents, {}, "") == "double(number=4)"
    assert rules.call(step, documents, {}, "timeout") == "math.root(value=4)"
    assert rules.call(step, documents, {}, "timeout") == ""


def completion(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def test_a_chat_model_plans_behind_an_openai_compatible_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "secret")
    outline = '```json\n[{"name": "step1", "intent": "double 4"}, {"name": "b", "intent": "note", "needs": ["step1"]}]\n```'
    answers = [outline, "```python\ndouble(number=4)\n```", " `note(text=step1)` "]
    with serving(lambda method, path, body: completion(answers.pop(0))) as server:
        planner = ChatPlanner(Endpoint(f"{server.url}/v1/", "small", "KEY", settings={"seed": 1}).chat)
        steps = planner.outline("Double 4 and note it.", ["I like numbers."])
        assert steps == [Step("step1", "double 4"), Step("b", "note", ("step1",))]
        documents = [document_of(double), document_of(note)]
        assert parse_call(planner.call(steps[0], documents, {}, "")).named == {"number": 4}
        gives = {"step1": documents[0].returns}
        assert parse_call(planner.call(steps[1], documents, gives, "timeout")).named == {"text": Reference("step1")}
    method, path, headers, body = server.requests[2]
    assert (method, path, headers["authorization"]) == ("POST", "/v1/chat/completions", "Bearer secret")
    assert body["model"] == "small" and body["seed"] == 1
    said = " ".join(message["content"] for message in body["messages"])
    assert "note(text: string) -> string" in said and "step1: number" in said and "timeout" in said
    assert [message["content"] for message in server.requests[0][3]["messages"][1:]] == [
        "I like numbers.",
        "Double 4 and note it.",
    ]


@pytest.mark.parametrize(
    "text", ["no list", "[1]", '[{"intent": "a"}]', '[{"name": "a b", "intent": "x"}]', "[", '{"name": 1}']
)
def test_an_outline_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="outline"):
        ChatPlanner(lambda messages: text).outline("x", [])
