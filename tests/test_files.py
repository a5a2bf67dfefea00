"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import math
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask.errors import InputError
from polytask.files import read_json, replacing, replacing_folder, sha256, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Accident(Exception):
    pass


def accident(path: Path) -> None:
    path.write_text("half")
    raise Accident


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent and not path.exists()
        temporary.write_text("new")
    assert path.read_text() == "new" and names(path.parent) == ["a.txt"]


def test_an_accident_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(Accident), replacing(path) as temporary:
        accident(temporary)
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "ours", "")
        (tmp_path / "theirs").write_text("")
        with replacing_folder(tmp_path / "folder") as temporary:
            (temporary / "model.json").write_text("{}")
        (tmp_path / "plain").mkdir()
        assert os.umask(mask) == mask  # the process's own mask was never touched
    finally:
        os.umask(before)
    for ours, theirs in (("ours", "theirs"), ("folder", "plain")):
        assert stat.S_IMODE((tmp_path / ours).stat().st_mode) == stat.S_IMODE((tmp_path / theirs).stat().st_mode)


FULL = """
import resource, signal, sys
from polytask.errors import InputError
from polytask.files import replacing, replacing_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    if sys.argv[1] == "file":
        with replacing(sys.argv[2]) as path:
            path.write_bytes(b"x" * 5000)
    else:
        with replacing_folder(sys.argv[2]) as path:
            (path / "model.json").write_bytes(b"x" * 5000)
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_disk_without_room_is_one_line_and_leaves_the_old(what: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if what == "file":
        path.write_text("old")
    else:
        path.mkdir()
        (path / "model.json").write_text("old")
    found = subprocess.run([sys.executable, "-c", FULL, what, str(path)], capture_output=True, text=True, check=True)
    assert found.stdout == f"{path}: cannot be written (File too large)\n"
    assert (path if what == "file" else path / "model.json").read_text() == "old"
    assert names(tmp_path) == ["out"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


KILLED = """
import sys, time
from polytask.files import replacing
while True:
    with replacing(sys.argv[1]) as path:
        path.write_text("x" * 200_000)
"""


def test_a_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for wait in (0.0, 0.003, 0.011):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)])
        while not path.exists():
            time.sleep(0.001)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.stat().st_size == 200_000
        path.unlink()


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder: cannot be written \(Is a directory\)"):
        write_text(tmp_path / "folder", "")
    with pytest.raises(InputError, match="file/a: cannot be written"), replacing_folder(tmp_path / "file" / "a"):
        pass
    assert names(tmp_path) == ["file", "folder"] and not any((tmp_path / "folder").iterdir())


def test_a_folder_takes_the_place_of_an_earlier_model_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with replacing_folder(path) as temporary:
        assert not path.exists()
        (temporary / "model.json").write_text("1")
        (temporary / "only-in-the-first").write_text("")
    with replacing_folder(path) as temporary:
        (temporary / "model.json").write_text("2")
        assert (path / "model.json").read_text() == "1"
    assert names(path) == ["model.json"] and (path / "model.json").read_text() == "2" and names(tmp_path) == ["model"]


def test_an_accident_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with replacing_folder(path) as temporary:
        (temporary / "model.json").write_text("1")
    with pytest.raises(Accident), replacing_folder(path) as temporary:
        accident(temporary / "model.json")
    assert (path / "model.json").read_text() == "1" and names(tmp_path) == ["model"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "new") as temporary:
        (temporary / "a").write_text("")
    (tmp_path / "empty").mkdir()
    with replacing_folder(tmp_path / "empty") as temporary:
        (temporary / "a").write_text("")
    assert names(tmp_path / "empty") == names(tmp_path / "new") == ["a"]


def test_other_peoples_folders_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("dear")
    with pytest.raises(InputError, match="photos: holds other files"), replacing_folder(tmp_path / "photos"):
        raise AssertionError("the block runs")
    with pytest.raises(InputError, match=r"1\.jpg: is a file"), replacing_folder(tmp_path / "photos" / "1.jpg"):
        raise AssertionError("the block runs")
    assert (tmp_path / "photos" / "1.jpg").read_text() == "dear" and names(tmp_path) == ["photos"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(values)
def test_json_goes_there_and_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_text(encoding="utf-8").endswith("\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, {"a": -math.inf}]])
def test_json_has_no_infinity(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", value)
    assert names(tmp_path) == []


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match=r"a\.json: cannot be read \(No such file"):
        read_json(path)
    path.write_text('{\n"a": [1,\n2')
    with pytest.raises(InputError, match=r"a\.json: line 3: not valid JSON"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"a\.json: byte 7: not UTF-8"):
        read_json(path)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
