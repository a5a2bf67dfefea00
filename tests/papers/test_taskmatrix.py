"""TaskMatrix.AI: the checks on a small catalogue, and the facts about the real one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.papers.real_data import folder_with

from polytask.papers.taskmatrix import PAPER, catalogues, checks
from polytask.papers.taskmatrix.catalogues import Request
from polytask.papers.taskmatrix.picture import plot
from polytask.route.tools import Document, Hit, Parameter, Selection, bind, matches, parse_call

PARTS = ["invoice", "weather", "ticket", "translation", "recipe", "route", "photo", "song"]


def small() -> tuple[list[Document], list[Request]]:
    documents = [
        Document(
            f"{verb}_{part}",
            (Parameter("x", "string", f"which {part} to {verb}", True),),
            f"{verb} of one {part}",
            module=part,
        )
        for part in PARTS
        for verb in ("find", "delete", "change")
    ]
    requests = [
        Request(
            f"please {document.name.split('_')[0]} my {document.module} number {i}",
            row,
            (row, (row + 5) % 24),
            "live_multiple",
        )
        for i in range(3)
        for row, document in enumerate(documents)
    ]
    return documents, requests


def test_the_checks_on_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def remembered(texts: Any) -> Any:
        def embed(some: Any) -> np.ndarray:
            found = np.zeros((len(some), checks.WIDTH), np.float32)
            for row, text in enumerate(some):
                for word in text.lower().split():
                    found[row] += np.random.default_rng(list(word.encode())).standard_normal(checks.WIDTH)
            return found

        return embed

    monkeypatch.setattr(checks, "models", lambda data: small())
    monkeypatch.setattr(checks, "remembered", remembered)
    found = checks._models(Path(), 0)
    assert found == checks._models(Path(), 0)
    assert found["models lexical recall@10"] > 90 and found["models modules scored"] == 8 + 3 * 3
    assert found["feedback lexical before"] == found["models lexical recall@5"]


def test_the_checks_on_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, requests = small()
    none = [Request(f"sing about {i}", -1, (i,), "irrelevance") for i in range(12)]
    simple = [Request(request.text, request.gold, request.offered, "live_simple") for request in requests]
    documents = [document.but(module=f"catalogue {row}") for row, document in enumerate(documents)]
    monkeypatch.setattr(checks, "functions", lambda data: (documents, [*requests, *simple, *none]))
    found = checks._functions(Path(), 1)
    assert found["functions offered"] == 100 and found["abstention area"] == 100 and found["abstention balanced"] > 90
    assert found["functions parameters recall@1"] >= found["functions name recall@1"] > 50


def test_recall_and_ranks() -> None:
    selections = [Selection((Hit(3, 2.0), Hit(1, 1.0)), 7), Selection((), 5)]
    found = checks.scores(selections, [Request("a", 0), Request("b", 1)])
    assert found == {"recall@1": 0, "recall@5": 50, "recall@10": 50, "rank": 25, "scored": 6}
    assert checks._rank_by_name([1, 2, 3, 4], ["a", "a", "b", "c"], 2) == 2, "a name counts once"
    train, test = checks.halves([Request(str(i), i) for i in range(9)], 3)
    assert sorted(one.gold for one in [*train, *test]) == list(range(9)) and len(train) == 4


def test_real_calls_are_read_and_corrupted_ones_refused() -> None:
    folder = folder_with(catalogues.FILES)
    documents, calls = catalogues.compositions(folder)
    assert (len(documents), len(calls), len({document.module for document in documents.values()})) == (128, 1142, 8)
    wrong_types = []
    for text in calls:
        call = parse_call(text)
        try:
            bind(call, documents[call.function])
        except ValueError as error:
            wrong_types.append(str(error))
    assert wrong_types == ["close_ticket: ticket_id: 'ticket_001', expected an integer"]
    found = checks._calls(folder, 0)
    assert found["calls accepted"] == 100 and found["calls refused"] > 99


def test_the_catalogues_are_what_they_are_said_to_be() -> None:
    folder = folder_with(catalogues.FILES)
    documents, requests = catalogues.models(folder)
    assert (len(documents), len(requests), len({document.module for document in documents})) == (1726, 1703, 61)
    documents, requests = catalogues.functions(folder)
    assert len(documents) == 3105 and len({document.name for document in documents}) == 1702
    counts = {
        split: sum(one.split == split for one in requests) for split in ("live_multiple", "live_simple", "live_irrelevance")
    }
    assert counts == {"live_multiple": 1053, "live_simple": 258, "live_irrelevance": 884}
    assert all((one.gold < 0) == ("irrelevance" in one.split) for one in requests)
    assert sum(not one.offered for one in requests) == 4


def test_the_leaderboards_own_answers_are_right_by_its_rule() -> None:
    folder = folder_with(catalogues.FILES)
    rows = catalogues.read(folder, "bfcl_functions")
    right = asked = 0
    for task in catalogues.read(folder, "bfcl_tasks")[:400]:
        truth = task["ground_truth"][0]
        name = next(iter(truth))
        row = next(rows[fid] for fid in task["functions"] if rows[fid]["name"] == name)
        document = catalogues.read_function(row)
        given = {
            key: next(value for value in values if value != "") for key, values in truth[name].items() if "" not in values
        }
        asked += 1
        right += matches(
            parse_call(f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"), truth, document
        )
    assert asked == 400 and right / asked > 0.97


def test_every_claim_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for claim in PAPER.claims for name in claim.pair}
    shown = {f"{kind} {arm} recall@{k}" for kind, arms in (("models", ("lexical", "embedding", "hybrid", "modules")),
             ("functions", tuple(checks.STRIPPED))) for arm in arms for k in (1, 5, 10)}  # fmt: skip
    measured = dict.fromkeys(names | shown, 50.0)
    assert len(plot({0: measured, 1: measured}).axes) == 3
    assert {name for name in names if name.startswith("functions")} <= {f"functions {s} recall@5" for s in checks.STRIPPED}
