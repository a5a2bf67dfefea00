"""What a server allows, and the errors that it answers, in JSON as OpenAI's API has them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from polytask.errors import InputError, quoted

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What a server allows.

    Args:
        body: bytes of a request, at most; more is answered with status 413.
        concurrency: requests at a time; more are answered with status 503.
        timeout: seconds for an expert's answer, all attempts together; for a stream, until it begins and between its parts.
        others: how many other experts are asked, in the router's order, when the chosen one fails.
    """

    body: int = 1_000_000
    concurrency: int = 64
    timeout: float = 60.0
    others: int = 1

    def __post_init__(self) -> None:
        if min(self.body, self.concurrency) < 1 or self.timeout <= 0 or self.others < 0:
            raise InputError(
                f"limits: body {self.body}, concurrency {self.concurrency}, timeout {self.timeout}, others {self.others}: "
                "expected positive numbers, and others from 0"
            )


class Refused(Exception):
    """What is answered with an error: its status, and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message

    def response(self) -> JSONResponse:
        """The answer."""
        return error(self.status, self.message)


def error(status: int, message: str) -> JSONResponse:
    """An error as OpenAI's API has it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {"retry-after": "1"} if status == 503 else None
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return JSONResponse(body, status, headers)


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object in a request's body; `Refused` where it is too large, or something else."""
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > limit:
            raise Refused(413, f"a body of more than {limit:,} bytes")
    try:
        value = json.loads(bytes(content))
    except ValueError as problem:  # UnicodeDecodeError is one
        raise Refused(400, f"the body is not JSON ({problem})") from problem
    except RecursionError as problem:
        raise Refused(400, "the body is nested too deeply") from problem
    if not isinstance(value, dict):
        raise Refused(400, f"the body is {quoted(value)}, expected a JSON object")
    return value


class Turnstile:
    """Lets ``limit`` requests through at a time, answers all others at once; a stream counts until it has ended."""

    def __init__(self, app: App, limit: int) -> None:
        self.app, self.limit, self.inside = app, limit, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self.app(scope, receive, send)
        elif self.inside >= self.limit:
            await error(503, f"{self.limit} requests are being answered: try again later")(scope, receive, send)
        else:
            self.inside += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.inside -= 1
