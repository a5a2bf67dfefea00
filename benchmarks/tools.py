"""Tools: selecting among a million documents, the time of a query, its memory, and the time to build the index.

    python -m benchmarks.tools [--quick]

regenerates ``benchmarks/results/tools.json`` and ``tools.md``. The documents are GENERATED, of words drawn by Zipf's law
from the text encoder's vocabulary; a document's vector is the mean of its words' vectors, weighted by rarity, and noise, and
is given. A request is some of a document's words. What is measured is time, memory, and what clusters miss against the exact
scan; how well selection works on real documents is what ``polytask reproduce taskmatrix`` measures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks._machine import machine, resident
from benchmarks._page import Row, page

from polytask.files import write_json, write_text
from polytask.nn.sentence import text_encoder_folder
from polytask.route.tools import (
    Document,
    Embedding,
    Hybrid,
    Lexical,
    Parameter,
    Registry,
    Selection,
    VectorIndex,
    sentence_embedder,
)

RESULTS = Path(__file__).parent / "results"
VOCABULARY, WORDS, WIDTH, MODULES, PIECE, QUERIES = 3000, 14, 384, 1000, 50_000, 60


def vocabulary() -> tuple[list[str], np.ndarray]:
    """Words, and their vectors."""
    tokens = json.loads((text_encoder_folder("minilm") / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in tokens if word.isascii() and word.isalpha() and len(word) > 3][:VOCABULARY]
    return words, sentence_embedder()(words)


def drawn(rng: np.random.Generator, count: int) -> np.ndarray:
    """The words of some documents, ``(count, WORDS)``."""
    odds = 1 / np.arange(1, VOCABULARY + 1)
    return rng.choice(VOCABULARY, (count, WORDS), p=odds / odds.sum())


def vectors_of(rng: np.random.Generator, rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    rarity = np.log(np.arange(1, VOCABULARY + 1) + 5).astype(np.float32)
    found = np.einsum("nw,nwd->nd", rarity[rows], vectors[rows])
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    noise = rng.standard_normal(found.shape, dtype=np.float32) * (0.3 / WIDTH**0.5)
    return found + noise


def documents(rows: np.ndarray, words: list[str], first: int) -> Iterator[Document]:
    for number, row in enumerate(rows, start=first):
        said = [words[i] for i in row]
        yield Document(
            f"{said[0]}_{said[1]}_{number}",
            (Parameter(f"{said[2]}_text", "string", said[3], True), Parameter(f"{said[4]}_count", "integer", said[5])),
            " ".join(said[6:]),
            module=f"package {number % MODULES}",
        )


class Clock:
    """Wall and CPU seconds of some parts of a run."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun, used = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - begun
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - used


def built(folder: Path, count: int, words: list[str], vectors: np.ndarray) -> dict[str, dict[str, float]]:
    """Seconds of what is done for the two sides; drawing documents and vectors is not counted."""
    rng, clock = np.random.default_rng(0), Clock()
    registry, index = Registry(folder / "registry.sqlite"), VectorIndex(folder / "vectors", WIDTH)
    for start in range(0, count, PIECE):
        rows = drawn(rng, min(PIECE, count - start))
        made, given = list(documents(rows, words, start)), vectors_of(rng, rows, vectors)
        with clock("registry"):
            ids = registry.register_all(made)
        with clock("vectors"):
            index.add(ids, given)
    with clock("clusters"):
        index.build()
    return {"wall": clock.wall, "cpu": clock.cpu}


def asked(folder: Path) -> dict[str, Any]:
    """Queries, in a process that has done nothing else."""
    rng = np.random.default_rng(1)
    words = json.loads((folder / "words.json").read_text())
    vectors = np.load(folder / "words.npy")
    registry, index = Registry(folder / "registry.sqlite"), VectorIndex(folder / "vectors", WIDTH)
    given: dict[str, np.ndarray] = {}
    lexical = Lexical(registry)
    embedding = Embedding(registry, index, lambda texts: np.stack([given[text] for text in texts]))
    hybrid = Hybrid({"lexical": lexical, "embedding": embedding})
    for row in drawn(rng, QUERIES + 5):
        some = row[:6]
        given[" ".join(words[i] for i in some)] = vectors_of(rng, some[None], vectors)[0]
    run: dict[str, Callable[[str], Selection]] = {
        "lexical": lambda text: lexical.select(text, 10),
        "embedding": lambda text: embedding.select(text, 10),
        "exact": lambda text: index.search(given[text], 10, probe=None),
        "hybrid": lambda text: hybrid.select(text, 10),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in run}
    recall, scored = [], []
    for place, text in enumerate(given):
        found = {}
        for name, one in run.items():
            clock = Clock()
            with clock(name):
                found[name] = one(text)
            if place >= 5:  # the first ones read the files for the first time
                times[name].append((1000 * clock.wall[name], 1000 * clock.cpu[name]))
        recall.append(len(set(found["embedding"].ids) & set(found["exact"].ids)) / 10)
        scored.append(found["hybrid"].scored)
    walls, cpus = ({name: np.array(each)[:, side] for name, each in times.items()} for side in (0, 1))
    return {
        "ms": {name: float(np.median(each)) for name, each in walls.items()},
        "ms_95": {name: float(np.quantile(each, 0.95)) for name, each in walls.items()},
        "cpu_ms": {name: float(np.median(each)) for name, each in cpus.items()},
        "recall": statistics.mean(recall),
        "scored": statistics.mean(scored),
        "peak_gb": resident("VmHWM") / 1e9,
        "anonymous_gb": resident("RssAnon") / 1e9,
    }


def encoding() -> float:
    """Milliseconds to encode a request of twelve words."""
    embed, times = sentence_embedder(), []
    for number in range(30):
        begun = time.perf_counter()
        embed([f"please list the invoices of customer {number} that were paid late"])
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def written(about: dict[str, Any], found: dict[str, Any]) -> str:
    seconds, asked_ = found["seconds"], found["asked"]
    total, cpu = (sum(seconds[side].values()) for side in ("wall", "cpu"))
    words = [
        f"Regenerated by `python -m benchmarks.tools`. {found['count']:,} documents, GENERATED of {VOCABULARY:,} words by",
        f"Zipf's law; vectors ({WIDTH}, int8) are given. {QUERIES} requests of six words, one thread; medians, with 95 %",
        "quantiles and the CPU's own time in brackets. Where the two differ much, the machine was busy with other things.",
    ]

    def ms(name: str) -> str:
        return f"{asked_['ms'][name]:.0f} ms ({asked_['ms_95'][name]:.0f}; CPU {asked_['cpu_ms'][name]:.0f})"

    parts = ", ".join(f"{name} {value:.0f}" for name, value in seconds["wall"].items())
    rows: list[Row] = [
        ("hybrid query", ms("hybrid"), "50 ms", asked_["ms"]["hybrid"] < 50),
        ("of which lexical", ms("lexical"), "", None),
        ("of which vectors, 32 clusters of the index", ms("embedding"), "", None),
        ("vectors, exact scan", ms("exact"), "", None),
        ("of the exact scan's ten, found by clusters", f"{100 * asked_['recall']:.0f} %", "", None),
        ("documents scored", f"{asked_['scored']:,.0f}", "", None),
        ("encoding the request by MiniLM, besides", f"{found['encoding_ms']:.0f} ms", "", None),
        ("memory of the process, at most", f"{asked_['peak_gb']:.2f} GB", "1.2 GB", asked_["peak_gb"] < 1.2),
        ("of which not mapped from files", f"{asked_['anonymous_gb']:.2f} GB", "", None),
        ("building the index", f"{total:.0f} s ({parts}; CPU {cpu:.0f})", "300 s", total < 300),
    ]
    return page("Tools: selecting among many documents", about, words, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 documents, nothing is written")
    parser.add_argument("--ask", metavar="FOLDER", help="run the queries on what was built there (used by this program)")
    arguments = parser.parse_args()
    count = 20_000 if arguments.quick else 1_000_000
    if arguments.ask:
        print(json.dumps(asked(Path(arguments.ask))))
        return
    about = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words, vectors = vocabulary()
        (folder / "words.json").write_text(json.dumps(words))
        np.save(folder / "words.npy", vectors)
        seconds = built(folder, count, words, vectors)
        print(seconds, flush=True)
        command = [sys.executable, "-m", "benchmarks.tools", "--ask", name]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {"count": count, "seconds": seconds, "asked": json.loads(answer.splitlines()[-1]), "encoding_ms": encoding()}
    print(written(about, found))
    if not arguments.quick:
        write_json(RESULTS / "tools.json", {"machine": about, **found})
        write_text(RESULTS / "tools.md", written(about, found))


if __name__ == "__main__":
    main()
