"""Safetensors headers: what may be believed, and one clear error for everything else, before a byte of data is read."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.checkpoint.raw import tensor, write

from polytask.errors import InputError
from polytask.merge.checkpoint import open_checkpoint
from polytask.merge.checkpoint.header import LIMIT, read_header

EIGHT = bytes(range(8))
GOOD = tensor("F32", [2], 0, 8)

# name: header, data, what the error has to say
HOSTILE: dict[str, tuple[Any, bytes, str]] = {
    "a list": ([], b"", "header is a list"),
    "no JSON": (b"{'w'}", b"", "not valid JSON"),
    "no header": (b"", b"", "not valid JSON"),
    "pickle": (b"\x80\x04K\x01.", b"", "not UTF-8"),
    "UTF-16": (json.dumps({"w": GOOD}).encode("utf-16"), EIGHT, "not UTF-8"),
    "half a surrogate pair": (b'{"\\ud800": {}}', b"", "not UTF-8"),
    "nested": (b'{"w":' + b"[" * 200_000, b"", "nested too deeply"),
    "thousands of digits": (b'{"w":' + b"9" * 10_000 + b"}", b"", "not valid JSON"),
    "NaN": (b'{"w": NaN}', b"", "NaN is not JSON"),
    "name twice": (b'{"w": 1, "w": 1}', b"", "'w' is there twice"),
    "key twice": (b'{"w": {"dtype": "F32", "dtype": "F32"}}', b"", "'dtype' is there twice"),
    "entry a number": ({"w": 3}, b"", "tensor 'w': 3, expected an object"),
    "no dtype": ({"w": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT, "tensor 'w': dtype None"),
    "dtype unknown": ({"w": tensor("F12", [2], 0, 8)}, EIGHT, "tensor 'w': dtype 'F12'"),
    "dtype a list": ({"w": {**GOOD, "dtype": ["F32"]}}, EIGHT, "tensor 'w': dtype"),
    "no shape": ({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT, "tensor 'w': shape None"),
    "shape negative": ({"w": tensor("F32", [-2, -1], 0, 8)}, EIGHT, "tensor 'w': shape"),
    "shape of floats": ({"w": {**GOOD, "shape": [2.0]}}, EIGHT, "tensor 'w': shape"),
    "shape of bools": ({"w": {**GOOD, "shape": [True, 2]}}, EIGHT, "tensor 'w': shape"),
    "shape absurd": ({"w": tensor("F32", [2**62, 2**62], 0, 8)}, EIGHT, "tensor 'w': shape"),
    "shape that overflows to fit": ({"w": tensor("U8", [2**32, 2**32], 0, 0)}, b"", "tensor 'w': shape"),
    "shape absurd behind a zero": ({"w": tensor("F32", [0, 2**62, 2**62], 0, 0)}, b"", "tensor 'w': shape"),
    "shape of a thousand": ({"w": tensor("F32", [1] * 1000, 0, 4)}, EIGHT[:4], "tensor 'w': shape"),
    "no offsets": ({"w": {"dtype": "F32", "shape": [2]}}, EIGHT, "tensor 'w': data_offsets None"),
    "offsets of strings": ({"w": {**GOOD, "data_offsets": ["0", "8"]}}, EIGHT, "tensor 'w': data_offsets"),
    "offsets three": ({"w": {**GOOD, "data_offsets": [0, 8, 16]}}, EIGHT, "tensor 'w': data_offsets"),
    "offsets backwards": ({"w": tensor("F32", [2], 8, 0)}, EIGHT, "tensor 'w': data_offsets"),
    "offsets negative": ({"w": tensor("F32", [2], -8, 0)}, EIGHT, "tensor 'w': data_offsets"),
    "span too long": ({"w": tensor("F32", [1], 0, 8)}, EIGHT, "hold 8 bytes, expected 4"),
    "span too short": ({"w": tensor("F32", [3], 0, 8)}, EIGHT, "hold 8 bytes, expected 12"),
    "out of range": ({"w": tensor("F32", [4], 0, 16)}, EIGHT, "holds 8 bytes of tensors"),
    "far out of range": ({"w": tensor("U8", [2**62], 0, 2**62)}, EIGHT, "holds 8 bytes of tensors"),
    "same bytes twice": ({"v": GOOD, "w": GOOD}, EIGHT, "tensor 'w': data_offsets [0, 8] overlap those of 'v'"),
    "overlap": ({"v": GOOD, "w": tensor("F32", [2], 4, 12)}, EIGHT + EIGHT, "overlap"),
    "empty tensor inside": ({"v": GOOD, "w": tensor("F32", [0], 4, 4)}, EIGHT, "overlap"),
    "hole": ({"v": GOOD, "w": tensor("F32", [2], 12, 20)}, EIGHT * 3, "leave a hole, expected them to begin at 8"),
    "hole at the start": ({"w": tensor("F32", [1], 4, 8)}, EIGHT, "leave a hole, expected them to begin at 0"),
    "bytes at the end": ({"w": GOOD}, EIGHT * 2, "8 bytes after the last tensor"),
    "metadata a number": ({"__metadata__": {"epoch": 3}, "w": GOOD}, EIGHT, "__metadata__"),
    "metadata a list": ({"__metadata__": ["pt"], "w": GOOD}, EIGHT, "__metadata__"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_one_clear_error(case: str, tmp_path: Path) -> None:
    header, data, says = HOSTILE[case]
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    message = str(error.value)
    assert message.startswith(str(path)) and says in message and "\n" not in message and len(message) < 1000


@pytest.mark.parametrize("length", [3, LIMIT, LIMIT + 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.safetensors", b"{}", length=length)
    with pytest.raises(InputError, match=rf"bad.safetensors: header of {length} bytes"):
        open_checkpoint(path)


@pytest.mark.parametrize("size", range(8))
def test_a_file_too_short_to_have_a_header(size: int, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(InputError, match=f"{size} bytes"):
        open_checkpoint(path)


def test_a_file_truncated_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.safetensors", {"v": GOOD, "w": tensor("U8", [3], 8, 11)}, EIGHT + b"abc")
    whole = path.read_bytes()
    assert list(open_checkpoint(path).read("w")) == list(b"abc")
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.safetensors"):
            open_checkpoint(path)


def test_a_name_with_control_characters_stays_on_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.safetensors", {"\n\x1b[31mgone" + "x" * 10_000: 1})
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name, says in [("pipe", "not a regular file"), ("folder", "no checkpoint"), ("absent", "cannot be read")]:
        with pytest.raises(InputError, match=says):
            open_checkpoint(tmp_path / f"{name}.safetensors")


def test_what_the_format_allows(tmp_path: Path) -> None:
    header = {
        "z": tensor("F32", [], 3, 7),  # not aligned, without dimensions, before the others in the file's order
        "a": tensor("U8", [3], 0, 3),
        "empty": tensor("BF16", [0, 2**40], 7, 7),
        "__metadata__": {"format": "pt"},
    }
    found = read_header(write(tmp_path / "odd.safetensors", json.dumps(header).encode() + b"   ", bytes(7)))
    assert found.metadata == {"format": "pt"}
    assert {name: (entry.dtype, entry.shape, entry.numel, entry.nbytes) for name, entry in found.entries.items()} == {
        "z": (torch.float32, (), 1, 4),
        "a": (torch.uint8, (3,), 3, 3),
        "empty": (torch.bfloat16, (0, 2**40), 0, 0),
    }
    assert not read_header(write(tmp_path / "none.safetensors", {})).entries


@given(st.data())
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A good file with a few bytes changed: it is an InputError, or safetensors' own reader finds the same in it."""
    good = json.dumps({"v": GOOD, "w": tensor("I16", [2, 2], 8, 16)}).encode()
    content = bytearray(len(good).to_bytes(8, "little") + good + bytes(16))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(path)
    except InputError:
        return
    theirs = safetensors.torch.load(bytes(content))
    assert theirs.keys() == checkpoint.entries.keys()
    for name, value in theirs.items():
        assert (value.dtype, value.shape) == (checkpoint.entries[name].dtype, checkpoint.entries[name].shape)
        assert torch.equal(checkpoint.read(name).view(torch.uint8), value.flatten().view(torch.uint8))
