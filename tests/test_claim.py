"""Claims: direction, margin, verdict, and what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from polytask.claim import Claim
from polytask.errors import InputError


def run(seed: int, data: Path) -> dict[str, float]:
    return {"ours": 1.0 + 0.1 * (seed % 3), "theirs": 2.0 + 0.1 * (seed % 2)}


CLAIM = Claim("lower", "ours errs less than theirs", run, method="ours", baseline="theirs", better="lower")
MEASURED = {seed: run(seed, Path()) for seed in range(6)}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "holds"),
        ({"better": "higher"}, "contradicted"),
        ({"method": "theirs", "baseline": "ours"}, "contradicted"),
        ({"margin": 0.5}, "holds"),
        ({"margin": 0.95}, "undecided"),
        ({"margin": 2.0}, "contradicted"),
        ({"better": "higher", "margin": -2.0}, "holds"),
    ],
)
def test_verdict_follows_direction_and_margin(change: dict[str, object], verdict: str) -> None:
    assert replace(CLAIM, **change).judge(MEASURED).verdict == verdict


def test_evidence_is_paired_by_seed_and_serialises() -> None:
    evidence = CLAIM.judge(dict(reversed(MEASURED.items())))
    assert evidence.seeds == tuple(range(6))
    assert evidence.mean == pytest.approx(0.95)
    assert evidence.low < evidence.mean < evidence.high
    assert json.loads(json.dumps(asdict(evidence)))["verdict"] == "holds"


def test_equal_methods_are_undecided() -> None:
    same = {seed: {"ours": float(seed), "theirs": float(seed)} for seed in range(5)}
    assert CLAIM.judge(same).verdict == "undecided"
    assert CLAIM.judge(same).p_value == 1.0


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(InputError, match="expected at least two"):
        CLAIM.judge({0: MEASURED[0]})
    with pytest.raises(InputError, match=r"seed 0 measured no 'our': did you mean 'ours'"):
        replace(CLAIM, method="our").judge(MEASURED)
    with pytest.raises(InputError, match="seed 3 measured ours = nan"):
        CLAIM.judge({**MEASURED, 3: {"ours": float("nan"), "theirs": 1.0}})


def test_missing_data_is_a_reason(tmp_path: Path) -> None:
    claim = replace(CLAIM, needs=("set/table.tsv",))
    assert "set POLYTASK_DATA or pass --data" in str(claim.missing(None))
    assert "not in the data folder" in str(claim.missing(tmp_path))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "table.tsv").touch()
    assert claim.missing(tmp_path) is None
    assert CLAIM.missing(None) is None
