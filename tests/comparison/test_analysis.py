"""Findings from made-up trials whose right answers are known."""

from __future__ import annotations

from typing import Any

import pytest
from scipy import stats

from polytask import Task
from polytask.comparison import analysis

TASKS = [Task.classification("a", classes=3), Task.regression("b")]
ALONE = {"a": [0.80, 0.82, 0.81, 0.79], "b": [1.0, 1.1, 0.9, 1.0]}
BETTER = {"a": [0.90, 0.91, 0.91, 0.90], "b": [0.5, 0.6, 0.4, 0.5]}


def test_the_difference_is_paired_by_seed_and_its_p_value_is_that_of_the_paired_t_test() -> None:
    found = analysis.task_findings(BETTER, ALONE)["a"]["difference"]
    expected = stats.ttest_rel(BETTER["a"], ALONE["a"])
    interval = expected.confidence_interval()
    assert found["mean"] == pytest.approx(0.1)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_delta_m_counts_a_smaller_error_as_better() -> None:
    found = analysis.delta_findings(BETTER, ALONE, TASKS)
    assert found is not None
    by_hand = [((a - c) / c + (d - b) / d) / 2 for a, b, c, d in zip(*BETTER.values(), *ALONE.values(), strict=True)]
    assert found["values"] == pytest.approx(by_hand)


def test_delta_m_is_refused_where_a_baseline_is_not_positive() -> None:
    assert analysis.delta_findings({"a": [0.1, 0.2]}, {"a": [0.0, 0.1]}, TASKS[:1]) is None


def test_verdicts_are_corrected_for_the_number_of_methods() -> None:
    findings: list[dict[str, Any]] = [{"mean": 1.0, "p": 0.02}, {"mean": -1.0, "p": 0.03}, {"mean": 1.0, "p": 0.9}]
    analysis.correct([*findings, None])
    assert [f["p_corrected"] for f in findings] == pytest.approx([0.06, 0.06, 0.9])
    assert {f["verdict"] for f in findings} == {"undecided"}


def test_for_an_error_a_negative_difference_is_better() -> None:
    finding: dict[str, Any] = {"mean": -1.0, "p": 0.001}
    analysis.correct([finding], better_above=False)
    assert finding["verdict"] == "better"


def test_transfer_reads_rows_as_the_task_that_gains() -> None:
    together = {("a", "b"): {"a": BETTER["a"], "b": [2.0, 2.2, 1.8, 2.0]}}
    found = analysis.transfer(TASKS, ALONE, together)
    assert found is not None
    assert found["verdict"] == [[None, "better"], ["worse", None]]
    assert found["gain"][1][0] == pytest.approx(-1.0)
    assert analysis.decided(found)[0][1] == pytest.approx(found["gain"][0][1])


def method(name: str, low: float, high: float, role: str = "method") -> dict[str, Any]:
    mean = (low + high) / 2
    verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return {"name": name, "role": role, "delta_m": {"mean": mean, "low": low, "high": high, "verdict": verdict}}


def test_no_winner_is_named_where_intervals_overlap() -> None:
    sentences = analysis.summary([method("x", 0.01, 0.05), method("y", 0.02, 0.04)], None, None)
    assert len(sentences) == 3
    assert "cannot be told apart" in sentences[0] and "best" not in sentences[0].lower()


def test_one_clear_winner_is_named() -> None:
    sentences = analysis.summary([method("x", 0.05, 0.06), method("y", -0.02, 0.01)], None, None)
    assert "x" in sentences[0] and "cannot be told apart" not in sentences[0]
    assert "x" in sentences[2]


def test_a_loss_everywhere_leads_to_the_advice_to_keep_models_apart() -> None:
    assert "Keep a model for each task" in analysis.summary([method("x", -0.05, -0.02)], None, None)[2]


def test_cosines_of_all_pairs_are_averaged_over_time_and_seeds() -> None:
    runs = [
        {"cosines": [{"step": 1, "cosines": [[1, c], [c, 1]]}, {"step": 2, "cosines": [[1, -c], [-c, 1]]}]}
        for c in (0.5, 0.3)
    ]
    found = analysis.cosine_findings(["a", "b"], "hard+equal", runs)
    assert found["mean"][0][1] == pytest.approx(0.0)
    assert found["conflicting_share"] == 0.5
    assert found["over_time"]["pairs"][0]["tasks"] == ["a", "b"]
    assert found["over_time"]["pairs"][0]["mean"] == pytest.approx([0.4, -0.4])


def test_the_outcome_of_the_groups_is_said_with_its_interval() -> None:
    sentence = analysis.grouping_outcome({"mean": -0.074, "low": -0.102, "high": -0.045, "verdict": "worse"})
    assert sentence.endswith("change by -7.4 % on average (95 % interval -10.2 % to -4.5 %): worse.")
