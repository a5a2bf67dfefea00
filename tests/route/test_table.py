"""The loss table: computed once, column by column, whatever fails or is killed."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polytask.errors import InputError, MissingExtra
from polytask.route import Example, Expert, LossTable, scoring

EXAMPLES = [Example("one"), Example("three"), Example("one", "other"), Example("one")]


def length(calls: list[str], name: str = "length", batch: int = 32) -> Expert:
    def losses(examples):  # type: ignore[no-untyped-def]
        calls.extend(example.prompt for example in examples)
        return [float(len(example.prompt)) for example in examples]

    return Expert(name, losses, batch=batch)


def test_a_cell_is_computed_once_and_a_new_expert_fills_its_column(tmp_path: Path) -> None:
    first: list[str] = []
    second: list[str] = []
    with LossTable(tmp_path / "t" / "losses.db") as table:
        table.fill(EXAMPLES, [length(first)])
        assert sorted(first) == ["one", "one", "three"]  # twice with another reference
    with LossTable(tmp_path / "t" / "losses.db") as table:
        seen: list[tuple[int, int, str]] = []
        more = [*EXAMPLES, Example("seven")]
        table.fill(more, [length(first), length(second, "again", batch=2)], progress=lambda *part: seen.append(part))
        assert first[3:] == ["seven"] and sorted(second) == ["one", "one", "seven", "three"]
        assert seen[-1] == (5, 5, "again")
        assert table.experts == ("again", "length") and table.examples == [*EXAMPLES[:3], Example("seven")]
        assert table.losses(more, ["length", "again"]).tolist() == [[3, 3], [5, 5], [3, 3], [3, 3], [5, 5]]
        assert np.isnan(table.losses([Example("new")], ["again"])).all()
        table.forget("length")
        assert table.experts == ("again",)
        with pytest.raises(InputError, match="no column of the expert 'length'"):
            table.losses(more, ["length"])


def test_one_example_that_fails_costs_no_other() -> None:
    calls: list[str] = []

    def losses(examples):  # type: ignore[no-untyped-def]
        calls.extend(example.prompt for example in examples)
        if any(example.prompt == "bad" for example in examples):
            raise ZeroDivisionError("first line\nsecond")
        return [float("nan") if example.prompt == "odd" else 1.0 for example in examples]

    table = LossTable()
    examples = [Example("good"), Example("bad"), Example("odd"), Example("fine")]
    table.fill(examples, [Expert("some", losses), Expert("short", lambda many: [1.0])])
    found = table.losses(examples, ["some", "short"])
    assert np.isnan(found).tolist() == [[False, False], [True, False], [True, False], [False, False]]
    assert {(f.expert, f.prompt): f.reason for f in table.failures} == {
        ("some", "bad"): "ZeroDivisionError: first line",
        ("some", "odd"): "loss nan, expected a finite number",
    }


def test_a_missing_package_is_no_failure_of_a_prompt() -> None:
    def losses(examples):  # type: ignore[no-untyped-def]
        raise MissingExtra("install it")

    with pytest.raises(MissingExtra):
        LossTable().fill(EXAMPLES, [Expert("some", losses)])


KILLED = """
import sys, time
from polytask.route import Example, Expert, LossTable, scoring
def slow(prompt):
    time.sleep(0.02)
    return float(prompt)
table = LossTable(sys.argv[1])
table.fill([Example(str(i)) for i in range(1000)], [Expert("slow", scoring(slow), batch=3)],
           progress=lambda done, total, name: print(done, flush=True))
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "losses.db"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    done = [int(child.stdout.readline()) for _ in range(3)][-1]
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    calls: list[str] = []
    examples = [Example(str(i)) for i in range(1000)]
    with LossTable(path) as table:
        kept = int((~np.isnan(table.losses(examples, ["slow"]))).sum())
        assert done <= kept <= done + 6 and kept % 3 == 0
        table.fill(examples, [Expert("slow", scoring(lambda prompt: calls.append(prompt) or float(prompt)))])  # type: ignore[func-returns-value]
        assert len(calls) == 1000 - kept
        assert table.losses(examples).ravel().tolist() == list(map(float, range(1000)))


def test_files_that_are_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, but long enough to be taken for one" * 30)
    with pytest.raises(InputError, match=r"text: cannot be written as a loss table .*not a database"):
        LossTable(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE bills (sum REAL)")
    with pytest.raises(InputError, match="a database of other things"):
        LossTable(tmp_path / "other.db")
    LossTable(tmp_path / "new.db").close()
    with sqlite3.connect(tmp_path / "new.db") as newer:
        newer.execute("PRAGMA user_version = 7")
    with pytest.raises(InputError, match="format 7, expected up to 1"):
        LossTable(tmp_path / "new.db")


def test_experts_and_references_are_checked() -> None:
    with pytest.raises(InputError, match="expected a name of its own"):
        LossTable().fill(EXAMPLES, [length([]), length([])])
    with pytest.raises(InputError, match="and losses"):
        LossTable().fill(EXAMPLES, [Expert("none")])
    with pytest.raises(InputError, match="expected a value that JSON has"):
        LossTable().fill([Example("a", object())], [length([])])
