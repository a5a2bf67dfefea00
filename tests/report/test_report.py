"""The HTML report and the picture: whole, self-contained, safe, and true to the verdicts."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from PIL import Image
from tests.report.report_fixture import CASES, FIVE, make

from polytask.errors import InputError
from polytask.report import picture, write_report
from polytask.report.palette import SENTINELS, VERDICTS
from polytask.report.plots import _apart, limits
from polytask.report.view import at_equal_time, level, who_leads
from polytask.report.words import count, decimals_for, duration, number, percent, sentence, shorten

VOID = {"meta", "br", "wbr", "img", "hr", "link", "input", "col"}
HOSTILE = "<script>alert('x')</script> \"&amp;$x_1$ --> \ud800\x00 表"


class Page(HTMLParser):
    """Checks that tags are balanced and ids unique, and keeps what the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        assert [name for name, times in self.ids.items() if times > 1] == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        self.ids.update(value for key, value in attrs if key == "id" and value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}> at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
            if self.open[-1] == "h2":
                self.headings.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def written(results: dict[str, Any], folder: Path) -> str:
    write_report(results, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


@cache
def case(name: str) -> tuple[dict[str, Any], str]:
    """The results of a case and its page, made once."""
    results = json.loads(json.dumps(make(**CASES[name])))
    with TemporaryDirectory() as folder:
        return results, written(results, Path(folder))


@pytest.mark.parametrize("name", CASES)
def test_a_report_is_whole_and_needs_no_network(name: str) -> None:
    results, text = case(name)
    page = Page(text)
    assert len(text.encode()) < 2_000_000
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not any(key in ("src", "srcset") for key, _ in page.attributes)
    assert all(value and value.startswith("#") for key, value in page.attributes if key == "href")
    targets = {value[1:] for key, value in page.attributes if key == "href" and value}
    targets |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(page.ids)
    assert not any(colour in text for colour in SENTINELS.values())
    assert re.search(r"\bnan\b|\binf\b|None|Undefined", page.text) is None
    for row in results["methods"]:
        assert row["name"] in page.text
    for task in results["data"]["tasks"]:
        assert task["name"] in page.text
    for said in results["summary"]:
        assert sentence(said).replace("\xa0", " ") in page.text.replace("\xa0", " ")


def test_hostile_names_are_shown_and_never_run(tmp_path: Path) -> None:
    tasks = {HOSTILE: "accuracy", "b": "rmse"}
    results = make(tasks=tasks, methods=(HOSTILE + "1", "hard+equal"))
    results["data"]["name"] = results["machine"] = HOSTILE
    results["summary"] = results["data"]["warnings"] = [HOSTILE]
    results["data"]["provenance"] = {HOSTILE: {HOSTILE: [HOSTILE, None, 1.5]}}
    page = Page(written(results, tmp_path))
    assert page.tags["script"] == 0
    assert page.text.count("<script>alert('x')</script> \"&amp;$x_1$ --> ") > 10
    picture(results, tmp_path / "p.png")


def test_marks_match_verdicts() -> None:
    results, text = case("plain")
    table = text[text.index('id="tasks"') : text.index("</table>", text.index('id="tasks"'))]
    rows = {re.sub(r"<[^>]*>", "", row).split("\n")[1].strip(): row for row in table.split("<tr>")[2:]}
    for method in results["methods"]:
        found = [method["delta_m"], *(method["tasks"][task]["difference"] for task in FIVE)]
        verdicts = [finding["verdict"] for finding in found if finding]
        row = next(row for name, row in rows.items() if name.startswith(method["name"]))
        assert re.findall(r'"unseen">(\w+)<', row) == verdicts
        assert re.findall(r'aria-hidden="true">(.)<', row) == [VERDICTS[verdict] for verdict in verdicts]


def test_the_lead_picture_says_in_words_what_it_shows() -> None:
    results, text = case("plain")
    page = Page(text)
    labels = [value for key, value in page.attributes if key == "aria-label" and value and value.startswith("delta_m")]
    for row in results["methods"]:
        if row["delta_m"]:
            assert f"{row['name']} {percent(row['delta_m']['mean'])}".replace("\xa0", " ") in labels[0]


def test_no_leader_is_named_where_intervals_overlap() -> None:
    text = Page(case("undecided")[1]).text
    assert "no single leader" in text
    assert re.search(r"\b(leads|wins|winner)\b", text) is None
    apart = {"a": {"mean": 2.0, "low": 1.5, "high": 2.5}, "b": {"mean": 1.0, "low": 0.9, "high": 1.4}}
    assert who_leads(apart, "Here") == "Here, a leads the ways to train together: its interval lies above every other one."
    apart["b"]["high"] = 1.5
    assert level(apart) == ["a", "b"]
    assert "no single leader: the intervals of all 2" in who_leads(apart, "At equal steps")


def test_equal_time_keeps_the_figures_of_fast_steps_and_never_invents_those_of_slow_ones() -> None:
    results = make(extras=False)
    for row in results["methods"]:
        if row["name"] == "hard+pcgrad":
            row["step_milliseconds"] = 10.0
        elif row["name"] == "mmoe+equal":
            row["step_milliseconds"] = 4.2
            expected = (row["steps"], row["delta_m"])
    found = at_equal_time(results)
    assert found["hard+pcgrad"] == (None, None)
    assert found["mmoe+equal"] == expected


def test_everything_that_may_be_null_is(tmp_path: Path) -> None:
    results = make()
    results |= dict.fromkeys(("transfer", "cosines", "grouping"))
    for row in results["methods"]:
        row |= dict.fromkeys(("steps", "learning_rate", "weights", "parameters", "step_milliseconds", "peak_memory_mb"))
        row |= {"delta_m": None, "equal_time": None, "curves": {}}
        for found in row["tasks"].values():
            found["difference"] = None
    page = Page(written(results, tmp_path))
    assert "delta_m is not defined for any method" in page.text
    assert "Which task helps which" not in page.headings
    picture(results, tmp_path / "p.png")


def test_other_schemas_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for results in (make() | {"schema": 2}, {}, []):
        with pytest.raises(InputError, match="expected schema 1"):
            write_report(results, tmp_path / "report.html")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    results, text = case("one")
    assert written(results, tmp_path) == text


@pytest.mark.parametrize("name", ["plain", "one", "many"])
def test_a_picture_is_as_wide_as_asked(name: str, tmp_path: Path) -> None:
    picture(make(**CASES[name]), tmp_path / "p.png", scale=1.0)
    with Image.open(tmp_path / "p.png") as image:
        assert image.width == 1040
        assert len(image.convert("RGB").getcolors(1_000_000) or []) > 20
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


def test_axes_hold_all_intervals_but_far_outliers() -> None:
    near = [{"mean": x, "low": x - 0.01, "high": x + 0.01} for x in (-0.02, 0.0, 0.01, 0.03, 0.04)]
    low, high = limits(near)
    assert low < -0.03 and high > 0.05
    clipped = limits([*near, {"mean": -0.6, "low": -0.61, "high": -0.59}])
    assert -0.1 < clipped[0] < -0.03 and clipped[1] > 0.05
    assert limits([]) == (-0.01, 0.01)
    same = limits([{"mean": 0.0, "low": 0.0, "high": 0.0}])
    assert same[0] < 0 < same[1]


def test_labels_are_moved_apart_and_stay_in_order() -> None:
    spots = _apart([0.0, 0.01, 0.01, 0.5, 0.52, 0.9], 0.05)
    assert all(b - a >= 0.05 - 1e-9 for a, b in pairwise(spots))
    assert spots[0] >= 0 and spots[-1] == pytest.approx(0.9)


def test_numbers_read_as_people_write_them() -> None:
    assert number(-1234.5, 1) == "−1,234.5"
    assert number(-0.0001, 2, sign=True) == "0.00"
    assert percent(None) == "–"
    assert [count(x) for x in (None, 950, 35_200, 1_200_000, 2e9)] == ["–", "950", "35.2 k", "1.20 M", "2.00 G"]
    assert duration(0.05) == "50 ms" and duration(7200) == "2.0 h"
    assert decimals_for([{"low": 0.96, "high": 0.97}]) == 4
    assert decimals_for([{"low": 10, "high": 2000}]) == 0
    assert sentence("-1.1 % on a-b (-3 %) in 2020-2021") == "−1.1\xa0% on a-b (−3\xa0%) in 2020-2021"
    assert shorten("abc\x1b[31m", 40) == "abc [31m"
