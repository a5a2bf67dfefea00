"""A model behind an OpenAI-compatible HTTP endpoint: asked with a deadline, a few retries, and a limit on what it sends."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from polytask.errors import InputError, PolytaskError, optional, quoted

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of a server that may answer the next time."""


class EndpointFailure(PolytaskError, RuntimeError):
    """An endpoint did not answer, or its answer is of no use; the message has its address and says why."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers.

    Args:
        url: the address that ``/chat/completions`` is appended to, such as ``http://127.0.0.1:8000/v1``.
        model: what the endpoint calls it.
        key_variable: the environment variable that holds the key; none is sent by default. The key itself is never kept.
        timeout: seconds for one attempt, from the connection to the last byte.
        retries: attempts after the first, where there was no connection, no answer in time, or a status of `RETRIED`.
        pause: seconds before the first retry; twice as many before each one after it.
        limit: bytes of an answer, at most.
        settings: further fields of each request, such as ``{"temperature": 0, "max_tokens": 64}``.
    """

    url: str
    model: str
    key_variable: str = ""
    timeout: float = 30.0
    retries: int = 2
    pause: float = 0.2
    limit: int = 4_000_000
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"endpoint {self.url!r}: expected an address that begins with http:// or https://")
        if self.timeout <= 0 or self.retries < 0 or self.pause < 0 or self.limit < 1:
            raise InputError(
                f"endpoint {self.url}: timeout {self.timeout}, retries {self.retries}, pause {self.pause}, limit "
                f"{self.limit}: expected a positive timeout and limit, no negative retries and pause"
            )

    def address(self, path: str) -> str:
        """The full address of ``chat/completions`` or another path."""
        return f"{self.url.rstrip('/')}/{path}"

    def headers(self) -> dict[str, str]:
        """With the key, if there is one; `InputError` where its variable is not set."""
        if not self.key_variable:
            return {}
        if not os.environ.get(self.key_variable):
            raise InputError(f"endpoint {self.url}: the environment variable {self.key_variable} is not set")
        return {"authorization": f"Bearer {os.environ[self.key_variable]}"}

    def answer(self, prompt: str) -> str:
        """What the model answers to ``prompt``, as its one message; `EndpointFailure` where it does not."""
        return self.chat([{"role": "user", "content": prompt}])

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What the model answers to ``messages``, ``{"role": ..., "content": ...}`` each; `EndpointFailure` as above."""
        sent = [dict(message) for message in messages]
        reply = self.ask("chat/completions", {**self.settings, "model": self.model, "messages": sent})
        try:
            content = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise EndpointFailure(f"{self.url}: no text in the answer {quoted(reply)}")
        return content

    def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON value that the endpoint answers to a request with this body."""
        for attempt in range(self.retries + 1):
            try:
                return self._attempt(path, body)
            except _TryAgain as failure:
                if attempt == self.retries:
                    times = f" ({attempt + 1} attempts)" if attempt else ""
                    raise EndpointFailure(f"{self.url}: {failure}{times}") from failure.__cause__
                time.sleep(self.pause * 2**attempt)
        raise AssertionError

    def _attempt(self, path: str, body: Mapping[str, Any]) -> Any:
        httpx = optional("httpx", "web")
        end = time.monotonic() + self.timeout
        content = bytearray()
        try:
            with self._client.stream("POST", self.address(path), json=dict(body), headers=self.headers()) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > self.limit:
                        raise EndpointFailure(f"{self.url}: an answer of more than {self.limit:,} bytes")
                    if time.monotonic() > end:
                        raise _TryAgain(f"no whole answer within {self.timeout:g} s")
        except httpx.TimeoutException as error:
            raise _TryAgain(f"no answer within {self.timeout:g} s") from error
        except httpx.HTTPError as error:
            raise _TryAgain(f"no connection ({str(error) or type(error).__name__})") from error
        if response.status_code != 200:
            reason = f"status {response.status_code} {quoted(bytes(content[:200]).decode(errors='replace'))}"
            if response.status_code in RETRIED:
                raise _TryAgain(reason)
            raise EndpointFailure(f"{self.url}: {reason}")
        try:
            return json.loads(bytes(content))
        except ValueError as error:
            start = quoted(bytes(content[:80]).decode(errors="replace"))
            raise EndpointFailure(f"{self.url}: the answer {start} is not JSON") from error

    @cached_property
    def _client(self) -> Any:
        return optional("httpx", "web").Client(timeout=self.timeout)


class _TryAgain(Exception):
    """What may be otherwise the next time."""
