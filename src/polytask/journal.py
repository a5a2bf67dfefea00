"""A journal: a file of JSON lines, of which the first says whose it is, and from which a killed search goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polytask.errors import InputError
from polytask.files import write_text


def open_journal(path: Path, about: Mapping[str, Any], check: Callable[[Mapping[str, Any]], None]) -> list[dict[str, Any]]:
    """The lines of a journal after its first, which is begun if it is not there.

    A last line that was not written whole is cut off.

    Args:
        path: the file.
        about: the first line; under ``search`` it names the journal's layout.
        check: is given the first line of a journal of this layout, and raises `InputError` if it is another search's.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not content:
        write_text(path, json.dumps(about, allow_nan=False) + "\n")
        return []
    whole = content[: content.rfind(b"\n") + 1]
    found = [_parsed(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]
    if not found or found[0].get("search") != about["search"]:
        raise InputError(f"{path}: no journal of a search ({about['search']}), expected one, or a path where nothing is")
    check(found[0])
    if len(whole) < len(content):
        try:
            os.truncate(path, len(whole))
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return found[1:]


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, in one piece and to the disk: a line without its end is one that was not written whole."""
    data = (json.dumps(line, allow_nan=False) + "\n").encode()
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            if os.write(file, data) != len(data):
                raise InputError(f"{path}: cannot be written (a line was cut short)")
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}: line {number}: not valid JSON") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: line {number}: expected a JSON object")
    return value
