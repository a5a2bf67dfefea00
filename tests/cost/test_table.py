"""Tables of latency: sums, files, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from polytask.cost import LatencyTable
from polytask.errors import InputError


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = LatencyTable({"conv3x3 64": 0.1, "head": 1 / 3})
    table.write(tmp_path / "phone.csv")
    assert LatencyTable.read(tmp_path / "phone.csv") == table
    assert table(["head", "head", "conv3x3 64"]) == pytest.approx(2 / 3 + 0.1) and table([]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1"),
        ("name,ms\n", "line 1: 'name,ms', expected block,ms"),
        ("block,ms\na,1\na,2\n", "line 3"),
        ("block,ms\na,-1\n", "line 2: 'a,-1'"),
        ("block,ms\na,nan\n", "line 2"),
        ("block,ms\na\n", "line 2"),
        ("block,ms\na,1,2\n", "line 2"),
    ],
)
def test_a_broken_file_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        LatencyTable.read(tmp_path / "x.csv")


def test_an_unknown_block_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'conv 64'"):
        LatencyTable({"conv 64": 1.0})(["conv 65"])
    with pytest.raises(InputError, match="expected finite milliseconds"):
        LatencyTable({"conv": float("inf")})
    with pytest.raises(InputError, match="without commas"):
        LatencyTable({"a,b": 1.0}).write(tmp_path / "x.csv")
    with pytest.raises(InputError, match="cannot be read"):
        LatencyTable.read(tmp_path / "absent.csv")
