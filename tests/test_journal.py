"""Journals cut at every byte, and those that are none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from polytask.errors import InputError
from polytask.journal import append_line, open_journal

ABOUT = {"search": "test 1", "seed": 0}


def anything(first: Mapping[str, Any]) -> None:
    assert first == ABOUT


def test_a_journal_cut_anywhere_has_the_lines_that_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal"
    assert open_journal(path, ABOUT, anything) == []
    for i in range(3):
        append_line(path, {"i": i})
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for size in range(first, len(content) + 1):
        path.write_bytes(content[:size])
        found = open_journal(path, ABOUT, anything)
        assert found == [{"i": i} for i in range(content[:size].count(b"\n") - 1)]
        append_line(path, {"more": True})  # on a line of its own
        assert open_journal(path, ABOUT, anything) == [*found, {"more": True}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"search": "test 0"}\n', r"no journal of a search \(test 1\)"),
        (b'{"search": "te', "no journal of a search"),
        (b'{"search": "test 1", "seed": 0}\nnone\n', "line 2: not valid JSON"),
        (b'{"search": "test 1", "seed": 0}\n[1]\n', "line 2: expected a JSON object"),
    ],
)
def test_what_is_no_journal_is_refused_and_left_alone(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_journal(path, ABOUT, anything)
    assert path.read_bytes() == content
    with pytest.raises(InputError, match="cannot be read"):
        open_journal(tmp_path, ABOUT, anything)
    with pytest.raises(InputError, match="cannot be written"):
        append_line(tmp_path / "absent", {})
