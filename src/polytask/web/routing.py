"""A router as a server: OpenAI-compatible requests, each answered by the expert that the router chooses for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from polytask.errors import InputError, quoted, suggest
from polytask.route import FLAGS, Router, parse_flags
from polytask.web.forward import Unanswered, forward
from polytask.web.limits import Limits, Refused, Turnstile, error, read_object

AUTO = "auto"
"""The model to ask for to be routed; also where none is named."""


def create_app(
    router: Router,
    limits: Limits | None = None,
    *,
    flags: Mapping[str, Mapping[str, float]] | None = FLAGS,
    doubt: float = 0.0,
) -> FastAPI:
    """An application with ``/v1/chat/completions``, ``/v1/completions``, ``/v1/models`` and ``/health``.

    A request for the model ``auto`` goes to the expert that the router chooses by the last message of the user, or the
    prompt; one for an expert's name goes there. ``weights`` in a request, ``{"size": 0.5}``, and flags in the user's
    messages are what the user wants beside quality; neither is passed on. All else is, and the answer comes back as it is,
    with the expert's name in the header ``x-polytask-expert``. If the expert fails, the next in the router's order is asked.

    Args:
        router: each of its experts with an endpoint.
        limits: see `Limits`.
        flags: what flags in prompts stand for; ``None`` leaves them there.
        doubt: see `Router.route_each`.
    """
    limits = limits or Limits()
    for expert in router.experts:
        if expert.endpoint is None:
            raise InputError(f"expert {expert.name!r} has no endpoint, expected one for each expert of a served router")
        expert.endpoint.headers()  # raises where a key is missing
    router.route("warm up", doubt=doubt)
    server = _Server(router, limits, flags, doubt)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = httpx.Limits(max_connections=2 * limits.concurrency, max_keepalive_connections=limits.concurrency)
        async with httpx.AsyncClient(limits=pool) as server.client:
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Turnstile, limit=limits.concurrency)

    @app.exception_handler(Refused)
    async def refused(request: Request, problem: Refused) -> JSONResponse:
        return problem.response()

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def no_such_path(request: Request, problem: HTTPException) -> JSONResponse:
        return error(problem.status_code, f"{request.method} {request.url.path}: {problem.detail}")

    @app.exception_handler(Exception)
    async def broken(request: Request, problem: Exception) -> JSONResponse:
        return error(500, f"internal error ({type(problem).__name__})")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [AUTO, *(expert.name for expert in router.experts)]
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "polytask"} for name in names]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await read_object(request, limits.body)
        return await server.answer("chat/completions", body, _take_messages(body, flags))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await read_object(request, limits.body)
        if not isinstance(body.get("prompt"), str):
            raise Refused(400, f"prompt {quoted(body.get('prompt'))}, expected a text")
        text, wished = _take_flags(body["prompt"], flags)
        body["prompt"] = text
        return await server.answer("completions", body, (text, wished))

    return app


class _Server:
    """What answers share: the router, the limits, and the client that asks experts."""

    client: httpx.AsyncClient

    def __init__(
        self, router: Router, limits: Limits, flags: Mapping[str, Mapping[str, float]] | None, doubt: float
    ) -> None:
        self.router, self.limits, self.flags, self.doubt = router, limits, flags, doubt
        self.experts = {expert.name: expert for expert in router.experts}

    async def answer(self, path: str, body: dict[str, Any], wish: tuple[str, dict[str, float]]) -> Response:
        text, weights = wish
        for cost, weight in _weights(body.pop("weights", None)).items():
            weights[cost] = weights.get(cost, 0.0) + weight
        problems = []
        for name in await self._order(body.get("model", AUTO), text, weights):
            endpoint = self.experts[name].endpoint
            assert endpoint is not None
            try:
                return await forward(self.client, endpoint, path, body, self.limits.timeout, name)
            except Unanswered as problem:
                problems.append(str(problem))
        raise Refused(502, "; ".join(problems))

    async def _order(self, model: Any, text: str, weights: Mapping[str, float]) -> list[str]:
        """The experts to ask, in order."""
        if isinstance(model, str) and model in self.experts:
            return [model]
        if model != AUTO:
            known = suggest(str(model), [AUTO, *self.experts])
            raise Refused(404, f"unknown model {quoted(model)}: {known}")
        try:
            decide = partial(self.router.route, text, weights, flags=None, doubt=self.doubt)
            decision = await asyncio.to_thread(decide)
        except InputError as problem:
            raise Refused(400, str(problem)) from problem
        order = [decision.expert, *(name for name in decision.order if name != decision.expert)]
        return order[: 1 + self.limits.others]


def _weights(value: Any) -> dict[str, float]:
    if value is None:
        return {}
    numbers = isinstance(value, dict) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) for weight in value.values()
    )
    if not numbers:
        raise Refused(400, f"weights {quoted(value)}, expected an object of costs and numbers")
    return dict(value)


def _take_flags(text: str, flags: Mapping[str, Mapping[str, float]] | None) -> tuple[str, dict[str, float]]:
    try:
        return parse_flags(text, flags) if flags is not None else (text, {})
    except InputError as problem:
        raise Refused(400, str(problem)) from problem


def _take_messages(body: dict[str, Any], flags: Mapping[str, Mapping[str, float]] | None) -> tuple[str, dict[str, float]]:
    """The text of the user's last message and its flags; flags leave the body, those of earlier messages too."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages) or not messages:
        raise Refused(400, f"messages {quoted(messages)}, expected a list of objects with role and content")
    found: tuple[str, dict[str, float]] = ("", {})
    for message in messages:
        if message.get("role") != "user":
            continue
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise Refused(400, f"content {quoted(content)} of a user's message, expected a text or a list of parts")
        texts, wished = [], dict[str, float]()
        for part in parts:
            if part.get("type") == "text" and isinstance(part.get("text"), str):
                part["text"], more = _take_flags(part["text"], flags)
                texts.append(part["text"])
                for cost, weight in more.items():
                    wished[cost] = wished.get(cost, 0.0) + weight
        if isinstance(content, str):
            message["content"] = parts[0]["text"]
        found = "\n".join(texts), wished
    return found
