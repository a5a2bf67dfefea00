"""Endpoints: real servers that answer, hang, drop, flood and talk nonsense."""

import time

import pytest
from tests.route.endpoints import nobody, serving

from polytask.errors import InputError
from polytask.route import Endpoint, EndpointFailure, Example, Expert, LossTable, answering


def test_an_answer_and_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    with serving("good") as server:
        endpoint = Endpoint(server.url + "/", "small", "SOME_KEY", settings={"temperature": 0})
        assert endpoint.answer("hello") == "expert: hello"
        message = {"role": "user", "content": "hello"}
        assert server.bodies == [{"temperature": 0, "model": "small", "messages": [message]}]
        assert server.keys == ["Bearer secret"]
        assert "secret" not in repr(endpoint)
        monkeypatch.delenv("SOME_KEY")
        with pytest.raises(InputError, match="variable SOME_KEY is not set"):
            endpoint.answer("hello")


@pytest.mark.parametrize(
    ("behaviour", "message", "attempts"),
    [
        ("hangs", "no answer within 0.3 s", 2),
        ("trickles", "no whole answer within 0.3 s", 2),
        ("drops", "no connection", 2),
        ("busy", "status 503 .*try later", 2),
        ("refuses", "status 400 .*no such setting", 1),
        ("garbage", "the answer '<html>hello</html>' is not JSON", 1),
        ("empty", r"no text in the answer .*'choices': \[\]", 1),
        ("huge", "more than 100,000 bytes", 1),
    ],
)
def test_what_is_no_answer_is_one_error(behaviour: str, message: str, attempts: int) -> None:
    wait = 0.3 if "0.3 s" in message else 10.0
    with serving(behaviour) as server:
        endpoint = Endpoint(server.url, "small", timeout=wait, retries=1, pause=0.01, limit=100_000)
        started = time.monotonic()
        with pytest.raises(EndpointFailure, match=message) as caught:
            endpoint.answer("hello")
        assert time.monotonic() - started < (2.5 if wait < 1 else 8)  # not for as long as the server would
        assert len(server.bodies) == attempts
        assert server.url in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_recovers_and_one_that_is_not_there() -> None:
    with serving("busy", "drops", "good") as server:
        assert Endpoint(server.url, "small", pause=0.01).answer("again") == "expert: again"
        assert len(server.bodies) == 3
    with nobody() as url, pytest.raises(EndpointFailure, match=r"no connection .*\(3 attempts\)"):
        Endpoint(url, "small", pause=0.01).answer("hello")


def test_failures_are_cells_of_the_table_and_can_be_tried_again() -> None:
    with serving("good", "garbage", "good") as server:
        endpoint = Endpoint(server.url, "small", retries=0)
        expert = Expert("far", answering(endpoint.answer, lambda answer, reference: float(answer != reference)), batch=1)
        examples = [Example("a", "expert: a"), Example("b", "expert: b"), Example("c", "something")]
        table = LossTable()
        table.fill(examples, [expert])
        (failure,) = table.failures
        assert (failure.expert, failure.prompt) == ("far", "b") and "not JSON" in failure.reason
        table.fill(examples, [expert])
        assert len(server.bodies) == 3  # a failure too is computed once
        table.fill(examples, [expert], again=True)
        assert len(server.bodies) == 4 and not table.failures
        assert table.losses(examples).ravel().tolist() == [0.0, 0.0, 1.0]


def test_several_at_once() -> None:
    with serving("good") as server:
        expert = Expert("far", answering(Endpoint(server.url, "small").answer, lambda a, r: float(len(a))), batch=2)
        examples = [Example("x" * i) for i in range(20)]
        table = LossTable()
        table.fill(examples, [expert], threads=4)
        assert table.losses(examples).ravel().tolist() == [len("expert: ") + i for i in range(20)]


@pytest.mark.parametrize("change", [{"url": "ftp://x"}, {"timeout": 0}, {"retries": -1}, {"limit": 0}])
def test_settings_are_checked(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        Endpoint(**{"url": "http://x", "model": "m", **change})  # type: ignore[arg-type]
