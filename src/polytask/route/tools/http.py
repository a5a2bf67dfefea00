"""Calls by HTTP: of documented endpoints, on hosts that were allowed, within limits of time and size."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from polytask.errors import optional
from polytask.route.tools.document import Document
from polytask.route.tools.isolation import CallError


def call_http(
    document: Document, arguments: Mapping[str, Any], headers: Mapping[str, str], seconds: float, output: int
) -> Any:
    """Send the request of a document's endpoint, and give the response's JSON, or its text where it is none.

    Redirects are not followed, so that the host is the one that was allowed.

    Args:
        document: with an endpoint.
        arguments: by name, checked.
        headers: sent besides, such as a key.
        seconds: until the connection is closed, however slowly the response comes.
        output: bytes that the response may have.

    Raises:
        CallError: when the host cannot be reached, hangs, drops the connection, answers with an error or with too much.
    """
    httpx = optional("httpx", "web")
    assert document.endpoint is not None
    url, sent, query, body = document.endpoint.url, dict(headers), {}, {}
    whole: Any = None
    for name, value in arguments.items():
        place, _, called = document.endpoint.places.get(name, "query").partition(" ")
        called = called or name
        if place == "path":
            if str(value) in ("", ".", ".."):
                raise CallError("invalid", f"{name}: {value!r} cannot be a part of a path")
            url = url.replace(f"{{{called}}}", quote(_text(value), safe=""))
        elif place == "header":
            sent[called] = _text(value)
        elif place == "body":
            body[called] = value
        elif place == "json":
            whole = value
        else:
            query[called] = [_text(one) for one in value] if isinstance(value, list) else _text(value)
    payload = whole if whole is not None else (body or None)
    until = time.monotonic() + seconds
    try:
        with httpx.Client(timeout=seconds, follow_redirects=False, trust_env=False) as client:
            request = client.build_request(document.endpoint.method, url, params=query or None, headers=sent, json=payload)
            response = client.send(request, stream=True)
            content = b""
            for piece in response.iter_bytes():
                content += piece
                if len(content) > output:
                    raise CallError("too much", f"more than {output} bytes")
                if time.monotonic() > until:
                    raise CallError("timeout", f"the response took more than {seconds:g} s")
            response.close()
    except httpx.TimeoutException as error:
        raise CallError("timeout", f"{host_of(document)}: no response in {seconds:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise CallError(
            "unreachable", f"{host_of(document)}: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    if response.status_code >= 300:
        raise CallError("http error", f"{host_of(document)} answered {response.status_code}")
    try:
        return json.loads(content) if content else None
    except ValueError as error:
        if "json" in response.headers.get("content-type", ""):
            raise CallError("unreadable", f"{host_of(document)} said JSON, and sent something else") from error
        return content.decode("utf-8", "replace")


def host_of(document: Document) -> str:
    """The host, with its port where it has one, of a document's endpoint."""
    return urlsplit(document.endpoint.url).netloc if document.endpoint else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
