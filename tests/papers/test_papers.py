"""The catalogue and the runner; what every paper owes is checked here once, for all of them."""

import doctest
import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from polytask.claim import Claim
from polytask.errors import InputError
from polytask.paper import Entry, Paper
from polytask.papers import catalogue, load, search
from polytask.papers._reproduce import reproduce
from polytask.papers._table import markdown, summary

WRITTEN = [entry.slug for entry in catalogue() if entry.done]
VERBS = {"share", "balance", "merge", "shrink", "route", "scale", "measure"}


def test_the_catalogue_has_every_paper_once() -> None:
    assert len(catalogue()) == len({entry.slug for entry in catalogue()}) == 59
    assert all(entry.title and entry.family and set(entry.verbs) <= VERBS for entry in catalogue())


def test_listing_imports_no_paper() -> None:
    code = "import sys, polytask.papers; polytask.papers.catalogue(); print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_search_takes_all_words_anywhere_in_any_case() -> None:
    assert [entry.slug for entry in search(["VISION", "experts"])] == ["m3vit", "switch_dit", "taskexpert"]
    assert {entry.slug for entry in search(["done"])} == set(WRITTEN)
    assert search(["no such word"]) == []


def test_unknown_and_unwritten_papers_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'product_unit'"):
        load("product_units")
    planned = next(entry.slug for entry in catalogue() if not entry.done)
    with pytest.raises(InputError, match="not written yet"):
        load(planned)


@pytest.mark.parametrize("slug", WRITTEN)
def test_a_written_paper_is_whole(slug: str) -> None:
    paper = load(slug)
    entry = next(entry for entry in catalogue() if entry.slug == slug)
    assert entry == Entry(paper.slug, paper.title, paper.family, paper.verbs, paper.reference)
    assert paper.claims and len({claim.name for claim in paper.claims}) == len(paper.claims)
    assert all(claim.seeds >= 5 for claim in paper.claims)
    examples = doctest.testmod(import_module(f"polytask.papers.{slug}"))
    assert examples.attempted > 0 and examples.failed == 0
    for scale in paper.scales:
        with torch.device("meta"):
            model = scale.build()
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == pytest.approx(scale.parameters, rel=scale.tolerance, abs=0), scale.name


def measure(seed: int, data: Path) -> dict[str, float]:
    with (data / "log").open("a") as log:
        log.write(f"{seed}\n")
    if (data / "broken").exists() and seed == 1:
        raise ZeroDivisionError("seed 1 is broken")
    return {"a": 1.0 + seed, "b": 3.0 + seed + seed % 2}


def paper_of(data: Path) -> Paper:
    lower = Claim("lower", "a is below b", measure, "a", "b", "lower", claimed="always", needs=("log",), seeds=4)
    higher = Claim("higher", "a is above b", measure, "a", "b", "higher", needs=("log",), seeds=4)
    (data / "log").touch()
    return Paper("small", "A small paper", "tests", ("measure",), "nowhere", claims=(lower, higher))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_claims_that_share_a_function_share_its_runs(tmp_path: Path, data: Path) -> None:
    outcomes = reproduce([paper_of(data)], out=tmp_path, data=data, workers=1)
    assert [outcome.evidence and outcome.evidence.verdict for outcome in outcomes] == ["holds", "contradicted"]
    assert (data / "log").read_text().split() == ["0", "1", "2", "3"]
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / ".seeds" / ".gitignore").read_text() == "*\n"
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["small"]["measurements"]["2"] == {"a": 3.0, "b": 5.0}
    assert results["small"]["claims"][0]["evidence"]["mean"] == 2.5
    assert "| a is below b | always | 2.5 vs 5, gain 2.50 [1.58, 3.42], 4 seeds | **holds** |" in markdown(results)
    assert "| `small` | A small paper | 1 | 0 | 1 |" in summary(results)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, data: Path) -> None:
    (data / "broken").touch()
    outcomes = reproduce([paper_of(data)], out=tmp_path, data=data, workers=1)
    assert all(
        outcome.failed and "seed 1 failed: ZeroDivisionError: seed 1 is broken" in outcome.reason for outcome in outcomes
    )
    assert not (tmp_path / "results.json").exists()
    # The log is one of the claim's inputs: put it back as it was, or the kept seeds would count as those of other data.
    (data / "broken").unlink()
    (data / "log").write_text("")
    (tmp_path / ".seeds" / "small" / "measure-3.json").write_text('{"fingerpr')
    outcomes = reproduce([paper_of(data)], out=tmp_path, data=data, workers=1)
    assert all(outcome.evidence for outcome in outcomes)
    assert (data / "log").read_text().split() == ["1", "3"]


def test_other_data_means_other_seeds(tmp_path: Path, data: Path) -> None:
    reproduce([paper_of(data)], out=tmp_path, data=data, workers=1)
    reproduce([paper_of(data)], out=tmp_path, data=data, workers=1)  # the first call changed the log
    assert len((data / "log").read_text().split()) == 8


def test_what_cannot_run_is_skipped_and_keeps_its_results(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLYTASK_DATA", raising=False)
    reproduce([paper_of(data)], out=tmp_path, data=data, workers=1)
    before = (tmp_path / "results.json").read_text()
    outcomes = reproduce([paper_of(data)], out=tmp_path, workers=1)
    assert not any(outcome.evidence or outcome.failed for outcome in outcomes)
    assert all("set POLYTASK_DATA" in outcome.reason for outcome in outcomes)
    assert (tmp_path / "results.json").read_text() == before


def test_processes_and_the_environment_change_nothing(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTASK_DATA", str(data))
    outcomes = {}
    for workers in (1, 2):
        (data / "log").write_text("")
        outcomes[workers] = reproduce([paper_of(data)], out=tmp_path / str(workers), workers=workers, seeds=3)
    assert [o.evidence for o in outcomes[1]] == [o.evidence for o in outcomes[2]]
    with pytest.raises(InputError, match="expected at least two"):
        reproduce([paper_of(data)], out=tmp_path, seeds=1)


def count(seed: int, data: Path) -> dict[str, float]:
    return {"one": 1.0 + seed, "two": 2.0 + seed}


def test_functions_with_seeds_of_their_own_and_a_name_that_was_not_measured(tmp_path: Path, data: Path) -> None:
    paper = paper_of(data)
    more = Claim("more", "two is above one", count, "two", "one", "higher", seeds=6)
    typo = Claim("typo", "two is above none", count, "two", "on", "higher", seeds=6)
    outcomes = reproduce([replace(paper, claims=(paper.claims[0], more, typo))], out=tmp_path, data=data, workers=1)
    assert [len(outcome.evidence.seeds) for outcome in outcomes if outcome.evidence] == [4, 6]
    assert outcomes[2].failed and "measured no 'on': did you mean 'one'" in outcomes[2].reason
