"""A real HTTP server in a thread, which answers by a function of the request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """What a server was asked, in order: method, path with query, headers, body."""

    url: str
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")


Answer = Callable[[str, str, Any], Any]


@contextmanager
def serving(answer: Answer) -> Iterator[Asked]:
    """Serve ``answer(method, path, body)``: JSON, ``(status, bytes)``, ``"hang"``, ``"drop"`` or ``"drip"``."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            text = self.rfile.read(length)
            body = json.loads(text) if text else None
            asked.requests.append((self.command, self.path, dict(self.headers), body))
            given = answer(self.command, self.path, body)
            if given == "drop":
                self.connection.close()
                return
            if given == "hang":
                over.wait(20)
                return
            status, content = given if isinstance(given, tuple) else (200, json.dumps(given).encode())
            self.send_response(status)
            self.send_header("content-type", "application/json")
            if given == "drip":
                self.end_headers()
                while not over.is_set():
                    try:
                        self.wfile.write(b" ")
                    except OSError:
                        return
                    time.sleep(0.02)
                return
            if status in (301, 302):
                self.send_header("location", content.decode())
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    asked = Asked(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()
