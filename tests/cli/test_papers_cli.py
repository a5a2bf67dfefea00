"""The commands ``papers`` and ``reproduce``."""

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from polytask.claim import Claim
from polytask.cli import papers
from polytask.errors import InputError
from polytask.paper import Paper

app = typer.Typer()
papers.register(app)
RESULTS = Path(__file__).parents[2] / "claims" / "results.json"


def run(*words: str) -> str:
    result = CliRunner().invoke(app, words, env={"COLUMNS": "100"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_papers_lists_all_and_finds_some() -> None:
    assert "59 papers" in run("papers")
    found = run("papers", "product", "motors")
    assert "product_unit" in found and "done" in found and "1 papers" in found
    with pytest.raises(InputError, match="no paper contains nothing and here"):
        run("papers", "nothing", "here")


def test_papers_prints_the_recorded_results_as_markdown() -> None:
    rows = [line for line in run("papers", "--table", str(RESULTS)).splitlines() if line.startswith("|")]
    results = json.loads(RESULTS.read_text())
    assert rows.count("|---|---|---|---|") == len(results)
    verdicts = [row for row in rows if re.search(r"\*\*(holds|contradicted|undecided)\*\* \|$", row)]
    assert len(verdicts) == len(rows) - 2 * len(results) == sum(len(result["claims"]) for result in results.values())


def test_reproduce_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown paper 'product_unti': did you mean 'product_unit'"):
        run("reproduce", "product_unti")
    with pytest.raises(InputError, match="name the papers to reproduce, or pass --all"):
        run("reproduce")
    with pytest.raises(InputError, match="name the papers to reproduce, or pass --all"):
        run("reproduce", "product_unit", "--all")


def test_reproduce_says_why_it_skips(tmp_path: Path) -> None:
    output = run("reproduce", "product_unit", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "skipped" in output and "airfoil" in output
    assert not (tmp_path / "out" / "results.json").exists()


def measure(seed: int, data: Path) -> dict[str, float]:
    return {"a": float(seed % 2), "b": 5.0}


def fail(seed: int, data: Path) -> dict[str, float]:
    raise ValueError("no luck")


def test_reproduce_shows_verdicts_and_fails_when_a_seed_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def paper(slug: str) -> Paper:
        claim = Claim(
            "lower", "a is below b", {"good": measure, "bad": fail}[slug], "a", "b", "lower", claimed="yes", seeds=3
        )
        return Paper(slug, slug, "tests", ("measure",), "nowhere", claims=(claim,))

    monkeypatch.setattr("polytask.papers.load", paper)
    result = CliRunner().invoke(app, ["reproduce", "good", "bad", "--workers", "1", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds" in result.output and "failed" in result.output and "no luck" in result.output
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["good"]
