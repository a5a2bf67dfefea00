"""Functions called with limits: in a process of their own, which is ended when its time is over."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from polytask.errors import PolytaskError


class CallError(PolytaskError, RuntimeError):
    """A call that failed.

    Attributes:
        kind: what failed, in our own words: fit to be shown to a planner.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


def in_process(function: Callable[..., Any], arguments: Mapping[str, Any], seconds: float, output: int) -> Any:
    """What a function gives, called in a process of its own; what it changes in memory is lost.

    The process and those that it started are killed when the time is over. On Linux the process is a fork of this one, so
    that any function can be called; elsewhere the function has to be importable.

    Args:
        function: takes ``arguments`` by name, and gives a value that JSON has.
        arguments: by name.
        seconds: until it is killed.
        output: bytes of JSON that it may give.

    Raises:
        CallError: when it fails, takes too long, gives too much, or what JSON has no form for.
    """
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, dict(arguments), send, output), daemon=True)
    process.start()
    send.close()
    try:
        if not receive.poll(seconds):
            raise CallError("timeout", f"stopped after {seconds:g} s")
        kind, value = json.loads(receive.recv_bytes(output + 1000))
    except (EOFError, OSError, ValueError) as error:
        process.join(1)
        raise CallError("crash", f"the process ended without a result (exit code {process.exitcode})") from error
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own, once it runs
        process.kill()
        process.join()
        receive.close()
    return _given(kind, value)


def in_thread(function: Callable[..., Any], arguments: Mapping[str, Any], seconds: float, output: int) -> Any:
    """The same in a thread of this process, for functions that change something in memory.

    A thread cannot be ended: one that takes too long is left to itself, and its result is never looked at.
    """
    found: list[bytes] = []

    def run() -> None:
        found.append(_called(function, arguments, output))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise CallError("timeout", f"left alone after {seconds:g} s")
    kind, value = json.loads(found[0])
    return _given(kind, value)


def _given(kind: str, value: Any) -> Any:
    if kind != "value":
        raise CallError(kind, value)
    return value


def _child(function: Callable[..., Any], arguments: Mapping[str, Any], send: Connection, output: int) -> None:
    os.setsid()
    send.send_bytes(_called(function, arguments, output))


def _called(function: Callable[..., Any], arguments: Mapping[str, Any], output: int) -> bytes:
    """The result as JSON, or what went wrong."""
    try:
        value = function(**arguments)
    except BaseException as error:
        return _told("error", f"{type(error).__name__}: {error}"[:500])
    try:
        text = json.dumps(["value", value]).encode()
    except (TypeError, ValueError, RecursionError):
        return _told("unreadable", f"gave a {type(value).__name__}, expected what JSON has")
    return text if len(text) <= output else _told("too much", f"gave {len(text)} bytes, expected at most {output}")


def _told(kind: str, detail: str) -> bytes:
    return json.dumps([kind, detail]).encode()
