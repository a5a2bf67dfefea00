"""Runs commands in this process, as the entry point does."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import NamedTuple
from unittest import mock

from polytask.cli.main import main


class Ran(NamedTuple):
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str


def polytask(*words: object) -> Ran:
    """Run ``polytask WORDS``."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    argv = ["polytask", *map(str, words)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
    assert isinstance(code, int)
    return Ran(code, out.getvalue(), err.getvalue())


def refused(*words: object) -> str:
    """Run a command that must be refused by one line on standard error and exit code 2; the line."""
    ran = polytask(*words)
    assert ran.code == 2, ran
    assert ran.out == ""
    *before, line = ran.err.splitlines()
    assert line.startswith("polytask: error: "), ran.err
    assert not any(text.startswith("polytask: error: ") for text in before)
    return line.removeprefix("polytask: error: ")
