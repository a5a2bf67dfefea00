"""Files that are whole or absent: written beside their target, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polytask.errors import InputError


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed onto it when the block ends well and removed when it does not.

    Raises `InputError` in one line when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path, "part")
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path | str) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends well: a reader sees all of it or nothing.

    An existing folder is replaced only when it is empty or was made by polytask (it holds ``model.json``),
    so that a mistyped output path never costs somebody their files.
    """
    path = Path(path)
    check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path, "part")
        temporary.mkdir()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        for written in temporary.rglob("*"):
            if written.is_file():
                with written.open("rb") as file:
                    os.fsync(file.fileno())
        if not path.exists():
            os.replace(temporary, path)
        elif not _exchange(temporary, path):
            old = _beside(path, "old")
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path | str) -> None:
    """Raise `InputError` unless `replacing_folder` may write ``path``: absent, an empty folder, or an earlier model."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file, expected a folder to write")
    if path.is_dir() and any(path.iterdir()) and not (path / "model.json").exists():
        raise InputError(f"{path}: holds other files, expected an empty folder or an earlier model")


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path``, whole or not at all. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The JSON value in ``path``; `InputError` names the file and the line when it is missing, truncated or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: not valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start}: not UTF-8 text") from error


def cache_folder() -> Path:
    """Where polytask keeps what it can make again: ``POLYTASK_CACHE``, or ``polytask`` in the user's cache folder."""
    if chosen := os.environ.get("POLYTASK_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polytask"


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path, ending: str) -> Path:
    """A hidden name beside ``path`` that no other writer uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{ending}")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that there is no moment without either; false where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2  # Linux, from glibc 2.28
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2
    done: int = renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return done == 0
