"""The command ``serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polytask.cli.data import tell


def serve(
    router: Annotated[Path, typer.Argument(metavar="ROUTER", help="A file that Router.save wrote.", show_default=False)],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8080,
    body: Annotated[int, typer.Option(min=1, help="Bytes of a request, at most.")] = 1_000_000,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for an expert's answer.")] = 60.0,
    others: Annotated[int, typer.Option(min=0, help="Experts to ask after the chosen one has failed.")] = 1,
    doubt: Annotated[float, typer.Option(min=0, help="Back off where the choice is less sure than this.")] = 0.0,
    flags: Annotated[bool, typer.Option(help="Read flags such as [Flag: small model] in prompts.")] = True,
) -> None:
    """Serve a router: OpenAI-compatible requests, each forwarded to the expert that is chosen for it.

    The router's experts need endpoints. Ask for the model 'auto', with "weights": {"size": 0.5} or flags in the prompt for
    what matters beside quality; or for an expert by name. Ctrl-C stops.
    """
    import socket

    from polytask.errors import InputError, optional
    from polytask.route import FLAGS, Router

    uvicorn = optional("uvicorn", "web")
    optional("fastapi", "web")
    optional("httpx", "web")
    import torch

    from polytask.web.limits import Limits
    from polytask.web.routing import create_app

    torch.set_num_threads(1)  # a prompt is little work, and several may come at once
    limits = Limits(body=body, concurrency=concurrency, timeout=timeout, others=others)
    app = create_app(Router.load(router), limits, flags=FLAGS if flags else None, doubt=doubt)
    try:
        listening = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port}: cannot be listened on ({error})") from error
    # An answer is sent in two parts; without this the second waits 40 ms for word of the first. Connections inherit it.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tell([f"serving {router} on http://{host}:{listening.getsockname()[1]}/v1"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    server.run(sockets=[listening])


def register(app: typer.Typer) -> None:
    """Add this file's command to ``app``."""
    app.command()(serve)
