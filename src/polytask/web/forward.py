"""Forwarding a request to an expert's endpoint, whole or as a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from fastapi.responses import Response, StreamingResponse

from polytask.errors import quoted
from polytask.route import Endpoint
from polytask.route.endpoint import RETRIED
from polytask.web.limits import Message, Receive, Refused, Send

CALLERS = frozenset({400, 404, 409, 413, 422})
"""Statuses that are the caller's business: the expert's answer is passed on, and no other expert is asked."""


class Unanswered(Exception):
    """An expert gave no answer that can be passed on; another may."""


async def forward(
    client: httpx.AsyncClient, endpoint: Endpoint, path: str, body: Mapping[str, Any], timeout: float, name: str
) -> Response:
    """What the endpoint answers to a request.

    Args:
        client: for all requests of a server.
        endpoint: whose settings are defaults, and whose model's name is put in. Its timeout holds for one attempt.
        path: ``chat/completions`` or ``completions``.
        body: of the request.
        timeout: seconds for all attempts.
        name: of the expert, for the answer's header ``x-polytask-expert``.

    Raises `Unanswered`.
    """
    sent = {**endpoint.settings, **body, "model": endpoint.model}
    reason = ""
    try:
        async with asyncio.timeout(timeout):
            for attempt in range(endpoint.retries + 1):
                if attempt:
                    await asyncio.sleep(endpoint.pause * 2 ** (attempt - 1))
                try:
                    async with asyncio.timeout(endpoint.timeout):
                        return await _attempt(client, endpoint, path, sent, min(timeout, endpoint.timeout), name)
                except (TimeoutError, httpx.TimeoutException):
                    reason = f"no answer within {endpoint.timeout:g} s"
                except httpx.HTTPError as error:
                    reason = f"no connection ({str(error) or type(error).__name__})"
                except _Status as error:
                    reason = str(error)
                    if error.status not in RETRIED:
                        break
    except TimeoutError:
        reason = f"no answer within {timeout:g} s"
    raise Unanswered(f"{name}: {reason}")


class _Status(Exception):
    """An answer with a status that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def _attempt(
    client: httpx.AsyncClient, endpoint: Endpoint, path: str, sent: Mapping[str, Any], timeout: float, name: str
) -> Response:
    request = client.build_request("POST", endpoint.address(path), json=dict(sent), headers=endpoint.headers())
    request.extensions["timeout"] = httpx.Timeout(timeout).as_dict()
    answer = await client.send(request, stream=True)
    headers = {"x-polytask-expert": name}
    streams = answer.headers.get("content-type", "").startswith("text/event-stream")
    if answer.status_code == 200 and sent.get("stream") and streams:
        return _Relay(answer, endpoint, headers)
    try:
        content = bytearray()
        async for piece in answer.aiter_bytes():
            content += piece
            if len(content) > endpoint.limit:
                raise Unanswered(f"{name}: an answer of more than {endpoint.limit:,} bytes")
    finally:
        await answer.aclose()
    status = answer.status_code
    start = quoted(bytes(content[:120]).decode(errors="replace"))
    if status != 200 and status not in CALLERS:
        raise _Status(status, f"status {status} {start}")
    try:
        json.loads(bytes(content))
    except ValueError as error:
        raise Unanswered(f"{name}: the answer {start} is not JSON") from error
    return Response(bytes(content), status, headers, media_type="application/json")


class _Relay(StreamingResponse):
    """An answer that is passed on as it comes; however it ends, the connection to the expert is given back."""

    def __init__(self, answer: httpx.Response, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        super().__init__(self._pieces(), headers=dict(headers), media_type="text/event-stream")
        self.answer, self.endpoint = answer, endpoint

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.answer.aclose()

    async def _pieces(self) -> AsyncIterator[bytes]:
        size, problem = 0, ""
        try:
            async for piece in self.answer.aiter_bytes():
                size += len(piece)
                if size > self.endpoint.limit:
                    problem = f"an answer of more than {self.endpoint.limit:,} bytes"
                    break
                yield piece
        except httpx.TimeoutException:
            problem = "the expert stopped answering"
        except httpx.HTTPError as error:
            problem = f"the connection to the expert was lost ({str(error) or type(error).__name__})"
        if problem:
            yield b"data: " + Refused(502, problem).response().body + b"\n\n"
