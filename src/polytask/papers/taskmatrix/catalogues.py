"""Real catalogues of APIs with real requests: APIBench's models (Patil et al., Gorilla, NeurIPS 2024), the functions of the
Berkeley Function-Calling Leaderboard (Patil et al., ICML 2025), and its compositions of several calls."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polytask.papers._minilm import embedded
from polytask.route.tools import Document, Registry, read_function

FOLDER = "api_calls_gorilla"
NAMES = ("apibench_apis", "apibench_eval", "bfcl_functions", "bfcl_tasks", "multiturn_functions", "multiturn_tasks")
FILES = tuple(f"{FOLDER}/{name}.jsonl.gz" for name in NAMES)


@dataclass(frozen=True)
class Request:
    """What a user asked for, and the place in its catalogue of what would do it.

    Attributes:
        text: the user's words.
        gold: the row of the API; -1 where none fits.
        offered: the rows that were offered; all where there are none.
        split: the part of the data set.
    """

    text: str
    gold: int
    offered: tuple[int, ...] = ()
    split: str = ""


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    with gzip.open(folder / FOLDER / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def models(folder: Path) -> tuple[list[Document], list[Request]]:
    """1,726 models as documents, whose module is their domain, and 1,703 requests; the call's text is not in them."""
    documents = [
        Document(
            f"model_{row['aid']}",
            description=f"{row['functionality']}. {row['name']}. {row['description']}",
            module=row["domain"],
        )
        for row in read(folder, "apibench_apis")
    ]
    return documents, [Request(row["instruction"], row["aid"]) for row in read(folder, "apibench_eval")]


def functions(folder: Path) -> tuple[list[Document], list[Request]]:
    """3,105 functions, of which many have one name, and the requests that want one of them or none."""
    rows = read(folder, "bfcl_functions")
    documents = [read_function(row, module=f"catalogue {row['fid']}") for row in rows]
    requests = []
    for task in read(folder, "bfcl_tasks"):
        if task["split"] not in ("live_multiple", "live_simple", "irrelevance", "live_irrelevance"):
            continue
        text = next(said for role, said in reversed(task["messages"]) if role == "user")
        wanted = next(iter(task["ground_truth"][0])) if task["ground_truth"] else None
        gold = next((fid for fid in task["functions"] if rows[fid]["name"] == wanted), -1)
        requests.append(Request(text, gold, tuple(task["functions"]), task["split"]))
    return documents, requests


def compositions(folder: Path) -> tuple[dict[str, Document], list[str]]:
    """128 functions by name, and the 1,142 calls of 200 conversations."""
    documents = [read_function(row, module=row["module"]) for row in read(folder, "multiturn_functions")]
    calls = [call for task in read(folder, "multiturn_tasks") for turn in task["ground_truth"] for call in turn]
    return {document.name: document for document in documents}, calls


def registered(documents: Sequence[Document]) -> Registry:
    """A registry in memory, where the document of row ``i`` has the id ``i + 1``."""
    registry = Registry()
    registry.register_all(documents)
    return registry


def remembered(texts: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """MiniLM as a function of texts, for those that it has been given here; what it gives is kept on disk."""
    unique = list(dict.fromkeys(texts))
    vectors = embedded(unique).numpy()
    rows = {text: row for row, text in enumerate(unique)}
    return lambda some: vectors[[rows[text] for text in some]]
