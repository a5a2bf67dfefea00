"""Route: what a decision, a proxy and a dispatch cost, beside going there directly and beside masks.

    python -m benchmarks.route [--quick]

regenerates ``benchmarks/results/route.json`` and ``route.md``. What is compared runs in turn, again and again; a ratio is
the median over the rounds. The served router is a process of its own, and so is its expert.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks._machine import machine
from benchmarks._page import Row, page
from benchmarks._timing import Run, ratio, seconds
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.files import write_json, write_text
from polytask.route import Endpoint, Expert, NGramFeatures, Router, SentenceFeatures, dispatch

RESULTS = Path(__file__).parent / "results"


def milliseconds(run: Run) -> float:
    return 1000 * seconds(run)


# Dispatch


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def dispatching(rounds: int) -> dict[str, Any]:
    """4,096 tokens of width 512, big modules with 2,048 inside and small ones with 128, at 30 % big."""
    big, small = SwiGLU(512, 2048), SwiGLU(512, 128)
    x, choice = torch.randn(4096, 512), (torch.rand(4096) > 0.3).long()
    first = (choice == 0)[:, None].float()

    def masks() -> Tensor:
        return first * big(x) + (1 - first) * small(x)

    def ours() -> Tensor:
        return dispatch(x, choice, [big, small])

    def forward(run: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            run()

    def training(run: Callable[[], Tensor]) -> None:
        run().square().mean().backward()

    torch.testing.assert_close(ours(), masks(), atol=1e-5, rtol=1e-4)
    return {
        name: ratio(partial(how, ours), partial(how, masks), rounds)
        for name, how in (("forward", forward), ("training", training))
    }


# Deciding


def router(encoder: Any, endpoint: Endpoint | None = None) -> Router:
    experts = [Expert(f"expert{k}", costs={"size": 10.0 ** (6 + k)}, endpoint=endpoint) for k in range(9)]
    texts = [f"prompt number {i} about {'apples' if i % 2 else 'oranges'}" for i in range(40)]
    losses = [[abs(k - i % 9) / 4 for k in range(9)] for i in range(40)]
    return Router.fit(encoder, experts, texts, losses)


def prompt(i: int) -> str:
    """About 350 characters, another each time."""
    words = ["the", "quick", "brown", "router", "reads", "every", "prompt", "once", "and", "sends", "it", "on"]
    return " ".join([f"{i}:", *(words[(i + j * j) % len(words)] for j in range(64))])


def deciding(rounds: int) -> dict[str, Any]:
    """Milliseconds for one prompt of 350 characters and nine experts, with a weight on size."""
    found = {}
    for name, encoder in (("n-grams", NGramFeatures()), ("sentences", SentenceFeatures())):
        made = router(encoder)
        for i in range(5):
            made.route(prompt(-1 - i), {"size": 0.1})
        found[name] = statistics.median(milliseconds(lambda: made.route(prompt(i), {"size": 0.1})) for i in range(rounds))  # noqa: B023
    again = prompt(0)
    found["kept"] = statistics.median(milliseconds(lambda: made.route(again, {"size": 0.1})) for _ in range(rounds))
    return found


# The proxy


EXPERT = """
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "yes"}}]}).encode()
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    def log_message(self, *args): pass
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def process(words: list[str], stream: str) -> Iterator[str]:
    """The address that a server of its own says it has."""
    child = subprocess.Popen([sys.executable, *words], text=True, **{stream: subprocess.PIPE})
    try:
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/v1", said)):
            line = getattr(child, stream).readline()
            if not line:
                raise RuntimeError(f"no server: {said}")
            said += line
        yield found[0]
    finally:
        child.terminate()
        child.wait(20)


def proxy(rounds: int) -> dict[str, Any]:
    """Milliseconds over calling the expert directly: for an expert by its name, and with a decision by n-grams."""
    import httpx

    with tempfile.TemporaryDirectory() as folder, process(["-c", EXPERT], "stdout") as expert:
        path = Path(folder) / "router"
        router(NGramFeatures(), Endpoint(expert, "expert")).save(path)
        serve = ["-m", "polytask.cli.main", "serve", str(path), "--port", "0"]
        with process(serve, "stderr") as served, httpx.Client(timeout=20) as client:

            def ask(url: str, model: str, i: int) -> None:
                body = {"model": model, "messages": [{"role": "user", "content": prompt(i)}]}
                client.post(f"{url}/chat/completions", json=body).raise_for_status()

            times: dict[str, list[float]] = {"direct": [], "by name": [], "auto": []}
            ways = {"direct": (expert, "expert"), "by name": (served, "expert3"), "auto": (served, "auto")}
            for i in range(rounds + 20):
                for name, (url, model) in ways.items():
                    times[name].append(milliseconds(partial(ask, url, model, i)))
    kept = {name: each[20:] for name, each in times.items()}
    over = {
        f"{name} over": statistics.median(b - a for a, b in zip(kept["direct"], kept[name], strict=True))
        for name in ("by name", "auto")
    }
    return {**{name: statistics.median(each) for name, each in kept.items()}, **over}


# The page


def rows(results: dict[str, Any]) -> list[Row]:
    def below(what: str, found: float, bar: float, unit: str) -> Row:
        return what, f"{found:.2f} {unit}", f"{bar:g} {unit}", found <= bar

    forward, training = results["dispatch"]["forward"], results["dispatch"]["training"]
    decision, over = results["decision"], results["proxy"]
    return [
        below("dispatch at 30 % big beside both with a mask: forward", forward["ratio"], 0.6, "x"),
        below("the same: forward and backward", training["ratio"], 0.6, "x"),
        below("decision on a new prompt, character n-grams", decision["n-grams"], 15, "ms"),
        below("decision on a prompt whose features are kept, MiniLM", decision["kept"], 15, "ms"),
        ("decision on a new prompt, MiniLM", f"{decision['sentences']:.2f} ms", "", None),
        below("proxy over calling the expert directly", over["by name over"], 5, "ms"),
        below("proxy and decision, character n-grams", over["auto over"], 20, "ms"),
    ]


def written(about: dict[str, Any], results: dict[str, Any]) -> str:
    words = [
        "Regenerated by `python -m benchmarks.route`. What is compared runs in turn; figures are medians over the rounds. A",
        "prompt has about 350 characters; the router nine experts. MiniLM has 6 layers of width 384.",
    ]
    return page("Route: what it costs", about, words, rows(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    about = machine()
    results = {"dispatch": dispatching(3 if quick else 15)}
    results |= {"decision": deciding(10 if quick else 100), "proxy": proxy(20 if quick else 200)}
    print(json.dumps(results, indent=1))
    print(written(about, results))
    if not quick:
        write_json(RESULTS / "route.json", {"machine": about, **results})
        write_text(RESULTS / "route.md", written(about, results))


if __name__ == "__main__":
    main()
