"""Planners that ask a language model, by any function of messages or an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polytask.errors import InputError, optional, quoted
from polytask.route.tools.document import Document, Parameter
from polytask.route.tools.isolation import CallError
from polytask.route.tools.planning import Step

Chat = Callable[[Sequence[Mapping[str, str]]], str]
"""From messages, ``{"role": ..., "content": ...}``, to the answer's text."""

OUTLINE = """Split the user's request into steps, each of which one API call can do. Answer with a JSON list alone:
[{"name": "step1", "intent": "what it is to do, with all values that it needs", "needs": []}, ...]
"needs" lists the names of earlier steps whose results a step uses."""

CALL = """Write one call of one of these APIs that does what the user asks. Answer with the call alone, as in
name(parameter="text", other=3). Arguments are literals, lists, dictionaries, or the names of earlier results, also with
an index: step1["field"]. APIs:
"""


class Endpoint:
    """A chat model behind an OpenAI-compatible endpoint, as a function of messages.

    Args:
        url: up to and without ``/chat/completions``, as ``"http://127.0.0.1:8000/v1"``.
        model: its name there.
        key: sent as a bearer token, if any.
        seconds: until an answer has to be there as a whole.
        retries: how often a request is sent again after a failure that may pass (no connection, 429, 5xx), a moment later.
        settings: sent besides, such as ``{"temperature": 0}``.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = "",
        seconds: float = 60.0,
        retries: int = 2,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.url, self.model, self.key, self.seconds, self.retries = url.rstrip("/"), model, key, seconds, retries
        self.settings = {"temperature": 0, **(settings or {})}

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The answer's text; `CallError` when there is none."""
        for attempt in range(self.retries + 1):
            try:
                return self._ask(messages)
            except CallError as error:
                if attempt == self.retries or error.kind not in ("unreachable", "busy"):
                    raise
                time.sleep(min(0.1 * 2**attempt, 2.0))
        raise AssertionError

    def _ask(self, messages: Sequence[Mapping[str, str]]) -> str:
        httpx = optional("httpx", "web")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        body = {"model": self.model, "messages": [dict(message) for message in messages], **self.settings}
        until = time.monotonic() + self.seconds
        try:
            with (
                httpx.Client(timeout=self.seconds, trust_env=False) as client,
                client.stream("POST", f"{self.url}/chat/completions", json=body, headers=headers) as response,
            ):
                content = b""
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() > until or len(content) > 10_000_000:
                        raise CallError("timeout", f"{self.url}: no whole answer in {self.seconds:g} s")
        except httpx.TimeoutException as error:
            raise CallError("timeout", f"{self.url}: no answer in {self.seconds:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CallError("unreachable", f"{self.url}: {error or type(error).__name__}") from error
        if response.status_code == 429 or response.status_code >= 500:
            raise CallError("busy", f"{self.url} answered {response.status_code}")
        if response.status_code != 200:
            raise CallError("http error", f"{self.url} answered {response.status_code}")
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise CallError("unreadable", f"{self.url}: {quoted(content[:100])}, expected a chat completion") from error
        if not isinstance(text, str):
            raise CallError("unreadable", f"{self.url}: {quoted(text)}, expected a text")
        return text


class ChatPlanner:
    """A planner that asks a chat model for the outline, and for the call of each step.

    It shows the model documents, the names and types of earlier results, and our own words for what went wrong: nothing
    that an API answered.

    Args:
        chat: the model, such as an `Endpoint`.
        documents: how many of the documents fit into a prompt.
    """

    def __init__(self, chat: Chat, documents: int = 20) -> None:
        self.chat, self.documents = chat, documents

    def outline(self, request: str, context: Sequence[str]) -> list[Step]:
        before = [{"role": "user", "content": text} for text in context]
        answer = self.chat([{"role": "system", "content": OUTLINE}, *before, {"role": "user", "content": request}])
        found = re.search(r"\[.*\]", answer, re.DOTALL)
        try:
            steps = [
                Step(str(one["name"]), str(one["intent"]), tuple(str(need) for need in one.get("needs") or ()))
                for one in json.loads(found[0] if found else answer)
            ]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"outline {quoted(answer)}: expected a JSON list of steps with name, intent and needs"
            ) from error
        if bad := next((step.name for step in steps if not step.name.isidentifier()), None):
            raise InputError(f"outline: a step is called {quoted(bad)}, expected a name such as 'step1'")
        return steps

    def call(self, step: Step, documents: Sequence[Document], results: Mapping[str, Parameter | None], problem: str) -> str:
        described = "\n\n".join(_described(document) for document in documents[: self.documents])
        earlier = "".join(f"\n{name}: {gives.type if gives else 'any'}" for name, gives in results.items())
        asked = step.intent + (f"\n\nEarlier results:{earlier}" if earlier else "")
        asked += f"\n\nThe last call gave nothing: {problem}. Write another." if problem else ""
        answer = self.chat([{"role": "system", "content": CALL + described}, {"role": "user", "content": asked}])
        fenced = re.search(r"```\w*\n(.*?)```", answer, re.DOTALL)
        return (fenced[1] if fenced else answer).strip().strip("`").strip()


def _described(document: Document) -> str:
    lines = [document.signature(), document.description]
    lines += [f"  {p.name}: {p.description}" for p in document.parameters if p.description]
    lines += [f"Composition: {document.composition}"] if document.composition else []
    lines += [f"Example: {example}" for example in document.examples[:3]]
    return "\n".join(lines)
