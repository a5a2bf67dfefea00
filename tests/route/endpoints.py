"""A real HTTP server that answers as an OpenAI-compatible endpoint does, or as a broken one does."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers by ``behaviour``, a name for each request in turn, the last one for ever; remembers the bodies it got."""

    daemon_threads = True

    def __init__(self, behaviour: list[str], name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour, self.name, self.bodies, self.keys = behaviour, name, list[Any](), list[str | None]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        server.bodies.append(body)
        server.keys.append(self.headers.get("authorization"))
        how = server.behaviour[min(len(server.bodies), len(server.behaviour)) - 1]
        with contextlib.suppress(OSError):
            getattr(self, how)(body)

    def send(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def text(self, body: Any) -> str:
        return f"{self.server.name}: {body['messages'][-1]['content'] if 'messages' in body else body['prompt']}"

    def good(self, body: Any) -> None:
        if body.get("stream"):
            return self.streams(body)
        choice = {"index": 0, "message": {"role": "assistant", "content": self.text(body)}, "text": self.text(body)}
        self.send(200, json.dumps({"object": "chat.completion", "model": body["model"], "choices": [choice]}).encode())

    def streams(self, body: Any) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in [*self.text(body).split(), None]:
            data = "[DONE]" if word is None else json.dumps({"choices": [{"delta": {"content": word}}]})
            line = f"data: {data}\n\n".encode()
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def trickles_events(self, body: Any) -> None:
        """A stream that goes on until nobody reads it."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for _ in range(300):
            line = b'data: {"choices": [{"delta": {"content": "more"}}]}\n\n'
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.flush()
            time.sleep(0.02)

    def cuts(self, body: Any) -> None:
        """A stream that ends in the middle."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        line = b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.flush()
        self.drops(body)

    def hangs(self, body: Any) -> None:
        time.sleep(3)

    def trickles(self, body: Any) -> None:
        self.send_response(200)
        self.send_header("content-length", "1000")
        self.end_headers()
        for _ in range(30):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)

    def drops(self, body: Any) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def garbage(self, body: Any) -> None:
        self.send(200, b"<html>hello</html>")

    def empty(self, body: Any) -> None:
        self.send(200, b'{"choices": []}')

    def huge(self, body: Any) -> None:
        self.send(200, b'"' + b"x" * 200_000 + b'"')

    def busy(self, body: Any) -> None:
        self.send(503, b'{"error": {"message": "try later"}}')

    def refuses(self, body: Any) -> None:
        self.send(400, b'{"error": {"message": "no such setting"}}')


@contextlib.contextmanager
def serving(*behaviour: str, name: str = "expert") -> Iterator[Server]:
    server = Server(list(behaviour), name)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """An address where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
