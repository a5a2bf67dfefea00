"""A served router, in a process of its own, in front of real servers that answer, hang, drop and talk nonsense."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.cli.command import refused
from tests.route.endpoints import Server, nobody, serving

from polytask.errors import InputError
from polytask.route import Endpoint, Expert, NGramFeatures, Router

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

TEXTS = {"code": "def f(x): return x + 1", "verse": "shall I compare thee to a summer's day", "all": "what is this"}
CODE, VERSE, OTHER = TEXTS.values()


def small_router(endpoints: dict[str, Endpoint | None]) -> Router:
    """One expert for each text, the best at it by far, the last the cheapest and the second best at all."""
    sizes = {"code": 1e9, "verse": 1e8, "all": 1e6}
    experts = [Expert(name, costs={"size": sizes[name]}, endpoint=endpoint) for name, endpoint in endpoints.items()]
    losses = [[1.0, 5.0, 2.0], [5.0, 1.0, 2.0], [5.0, 5.0, 1.0]] * 10
    return Router.fit(NGramFeatures(width=256), experts, [*TEXTS.values()] * 10, losses, l2=1e-3)


class Served(NamedTuple):
    url: str
    experts: dict[str, Server]

    def ask(self, prompt: str, **fields: Any) -> Any:
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], **fields}
        return httpx.post(f"{self.url}/chat/completions", json=body, timeout=20)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("served") / "router"
    with serving("good", name="code") as code, serving("good", name="verse") as verse, serving("good", name="all") as every:
        servers = {"code": code, "verse": verse, "all": every}
        settings = {"temperature": 0}
        endpoints = {
            name: Endpoint(server.url, f"model-{name}", timeout=0.6, retries=1, pause=0.01, limit=50_000, settings=settings)
            for name, server in servers.items()
        }
        small_router(dict(endpoints)).save(path)
        words = ["serve", path, "--port", 0, "--body", 3000, "--concurrency", 4, "--timeout", 2]
        process = subprocess.Popen(
            [sys.executable, "-m", "polytask.cli.main", *map(str, words)], stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stderr is not None
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+/v1", said)):
                line = process.stderr.readline()
                assert line, said
                said += line
            yield Served(found[0], servers)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def served(running: Served) -> Served:
    for server in running.experts.values():
        server.behaviour = ["good"]
        server.bodies.clear()
    return running


def error_of(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    body = answer.json()["error"]
    assert body["code"] == status and set(body) == {"message", "type", "param", "code"}
    assert isinstance(body["message"], str)
    return body["message"]


@pytest.mark.parametrize(("name", "prompt"), TEXTS.items())
def test_each_prompt_goes_to_its_expert(served: Served, name: str, prompt: str) -> None:
    answer = served.ask(prompt, max_tokens=7, temperature=0.5)
    assert answer.status_code == 200 and answer.headers["x-polytask-expert"] == name
    assert answer.json()["choices"][0]["message"]["content"] == f"{name}: {prompt}"
    (body,) = served.experts[name].bodies  # what is set in the request goes before what the endpoint sets
    message = {"role": "user", "content": prompt}
    assert body == {"temperature": 0.5, "max_tokens": 7, "model": f"model-{name}", "messages": [message]}
    served.ask(prompt)
    assert served.experts[name].bodies[1]["temperature"] == 0


def test_weights_and_flags_are_heeded_and_not_passed_on(served: Served) -> None:
    assert served.ask(CODE, weights={"size": 50.0}).headers["x-polytask-expert"] == "all"
    answer = served.ask(f"{CODE} [Flag: small model 50]")
    assert answer.json()["choices"][0]["message"]["content"] == f"all: {CODE}"
    assert all("weights" not in body for body in served.experts["all"].bodies)
    parts = [{"type": "text", "text": f"[flag: small model 50] {VERSE}"}, {"type": "image_url", "image_url": {"url": "x"}}]
    messages = [
        {"role": "system", "content": "be kind [Flag: not the user's]"},
        {"role": "user", "content": f"{CODE} [Flag: small model]"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": parts},
    ]
    answer = httpx.post(f"{served.url}/chat/completions", json={"messages": messages})  # no model is auto too
    assert answer.headers["x-polytask-expert"] == "all"
    sent = served.experts["all"].bodies[-1]["messages"]
    assert sent[0] == messages[0] and sent[1]["content"] == CODE and sent[3]["content"][0]["text"] == VERSE


def test_completions(served: Served) -> None:
    answer = httpx.post(f"{served.url}/completions", json={"model": "auto", "prompt": VERSE})
    assert answer.json()["choices"][0]["text"] == f"verse: {VERSE}"
    answer = httpx.post(f"{served.url}/completions", json={"prompt": f"{VERSE} [Flag: small model 50]"})
    assert answer.json()["choices"][0]["text"] == f"all: {VERSE}"
    assert "expected a text" in error_of(httpx.post(f"{served.url}/completions", json={"prompt": ["a", "b"]}), 400)


def test_an_expert_by_its_name_and_the_list(served: Served) -> None:
    assert served.ask(CODE, model="verse").headers["x-polytask-expert"] == "verse"
    assert "did you mean 'verse'" in error_of(served.ask(CODE, model="vers"), 404)
    error_of(served.ask(CODE, model=["auto"]), 404)
    assert [model["id"] for model in httpx.get(f"{served.url}/models").json()["data"]] == ["auto", "code", "verse", "all"]
    assert httpx.get(served.url.removesuffix("/v1") + "/health").json() == {"status": "ok"}
    assert "Not Found" in error_of(httpx.get(f"{served.url}/embeddings"), 404)
    assert "Method Not Allowed" in error_of(httpx.get(f"{served.url}/chat/completions"), 405)


def test_a_stream_comes_as_it_is(served: Served) -> None:
    with httpx.stream("POST", f"{served.url}/chat/completions", json=streamed(CODE), timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-polytask-expert"] == "code"
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    assert " ".join(json.loads(line)["choices"][0]["delta"]["content"] for line in lines[:-1]) == f"code: {CODE}"


def streamed(prompt: str) -> dict[str, Any]:
    return {"model": "auto", "stream": True, "messages": [{"role": "user", "content": prompt}]}


@pytest.mark.parametrize("behaviour", ["hangs", "drops", "garbage", "busy", "huge", "trickles"])
@pytest.mark.parametrize("stream", [False, True])
def test_when_an_expert_fails_the_next_is_asked(served: Served, behaviour: str, stream: bool) -> None:
    served.experts["code"].behaviour = [behaviour]
    answer = served.ask(CODE, stream=stream)
    assert answer.status_code == 200 and answer.headers["x-polytask-expert"] == "all"
    attempts = 1 if behaviour in ("garbage", "huge") else 2
    assert len(served.experts["code"].bodies) == attempts


def test_a_retry_is_enough(served: Served) -> None:
    served.experts["code"].behaviour = ["busy", "good"]
    assert served.ask(CODE).headers["x-polytask-expert"] == "code"


def test_when_all_fail_the_error_says_why(served: Served) -> None:
    served.experts["code"].behaviour, served.experts["all"].behaviour = ["garbage"], ["hangs"]
    message = error_of(served.ask(CODE), 502)
    assert "code: the answer '<html>hello</html>' is not JSON" in message and "all: no answer within 0.6 s" in message
    assert not served.experts["verse"].bodies  # one other, no more
    message = error_of(served.ask(CODE, model="code"), 502)
    assert message.startswith("code:") and "all" not in message


def test_what_the_caller_did_wrong_is_passed_on(served: Served) -> None:
    served.experts["code"].behaviour = ["refuses"]
    answer = served.ask(CODE)
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "no such setting"
    assert not served.experts["all"].bodies


def test_a_stream_that_breaks_ends_with_an_error(served: Served) -> None:
    served.experts["code"].behaviour = ["cuts"]
    with httpx.stream("POST", f"{served.url}/chat/completions", json=streamed(CODE), timeout=10) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert json.loads(lines[0])["choices"][0]["delta"]["content"] == "half"
    assert "the connection to the expert was lost" in json.loads(lines[-1])["error"]["message"]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[1]", 400, r"\[1\], expected a JSON object"),
        (b"[" * 2900, 400, "nested too deeply|not JSON"),
        (b"{}", 400, "messages None, expected a list"),
        (b'{"messages": []}', 400, "expected a list"),
        (b'{"messages": ["a"]}', 400, "expected a list of objects"),
        (b'{"messages": [{"role": "user", "content": 5}]}', 400, "content 5 of a user's message"),
        (b'{"messages": [{"role": "user", "content": "a [Flag: smal model]"}]}', 400, "did you mean 'small model'"),
        (b'{"messages": [{"role": "user", "content": "a"}], "weights": 3}', 400, "weights 3, expected an object"),
        (b'{"messages": [{"role": "user", "content": "a"}], "weights": {"size": true}}', 400, "expected an object"),
        (b'{"messages": [{"role": "user", "content": "a"}], "weights": {"sise": 1}}', 400, "did you mean 'size'"),
        (b'{"messages": [{"role": "user", "content": "a"}], "weights": {"size": NaN}}', 400, "expected a finite number"),
        (b'{"messages": "' + b"x" * 3000 + b'"}', 413, "more than 3,000 bytes"),
    ],
)
def test_bad_requests(served: Served, content: bytes, status: int, message: str) -> None:
    answer = httpx.post(f"{served.url}/chat/completions", content=content)
    assert re.search(message, error_of(answer, status))
    assert not any(server.bodies for server in served.experts.values())


def test_a_body_without_a_length_is_limited_too(served: Served) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 1000

    assert "more than" in error_of(httpx.post(f"{served.url}/chat/completions", content=pieces()), 413)


def test_too_many_at_once_are_told_so_and_places_are_given_back(served: Served) -> None:
    served.experts["verse"].behaviour = ["hangs"]
    waiting = [threading.Thread(target=served.ask, args=(VERSE,), kwargs={"model": "verse"}) for _ in range(4)]
    for thread in waiting:
        thread.start()
    end = time.monotonic() + 10
    while len(served.experts["verse"].bodies) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    answer = served.ask(CODE)
    assert "4 requests are being answered" in error_of(answer, 503) and answer.headers["retry-after"] == "1"
    assert httpx.get(served.url.removesuffix("/v1") + "/health").status_code == 200
    for thread in waiting:
        thread.join()
    assert served.ask(CODE).status_code == 200


def test_who_leaves_a_stream_takes_no_place(served: Served) -> None:
    served.experts["code"].behaviour = ["trickles_events"]
    for _ in range(6):
        with httpx.stream("POST", f"{served.url}/chat/completions", json=streamed(CODE), timeout=10) as answer:
            next(answer.iter_lines())
    served.experts["code"].behaviour = ["good"]
    end = time.monotonic() + 10
    while (status := served.ask(CODE).status_code) == 503 and time.monotonic() < end:
        time.sleep(0.05)
    assert status == 200


# The command


def test_the_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read as a router" in refused("serve", tmp_path / "none")
    with nobody() as url:
        small_router({"code": Endpoint(url, "a"), "verse": None, "all": Endpoint(url, "b")}).save(tmp_path / "bare")
        assert "expert 'verse' has no endpoint" in refused("serve", tmp_path / "bare")
        small_router(dict.fromkeys(TEXTS, Endpoint(url, "a", "NO_SUCH_KEY"))).save(tmp_path / "locked")
        assert "the environment variable NO_SUCH_KEY is not set" in refused("serve", tmp_path / "locked")
        small_router(dict.fromkeys(TEXTS, Endpoint(url, "a"))).save(tmp_path / "router")
        assert "no ensemble" in refused("serve", tmp_path / "router", "--doubt", 1)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert f"127.0.0.1:{port}: cannot be listened on" in refused("serve", tmp_path / "router", "--port", port)


def test_limits_are_checked() -> None:
    from polytask.web.limits import Limits

    for wrong in ({"body": 0}, {"concurrency": 0}, {"timeout": 0.0}, {"others": -1}):
        with pytest.raises(InputError, match="expected positive numbers"):
            Limits(**wrong)  # type: ignore[arg-type]


def test_the_command_line_does_not_load_servers() -> None:
    code = "import sys, polytask.cli.main; print({'fastapi', 'uvicorn', 'httpx', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert found.stdout == "set()\n"
