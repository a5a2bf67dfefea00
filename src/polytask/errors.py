"""The errors that polytask raises for what a user can mend: one line each, naming what was wrong and what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType


class PolytaskError(Exception):
    """Anything that polytask refuses. The command line prints it as one line and exits with code 2."""


class InputError(PolytaskError, ValueError):
    """Input that cannot be used: the message names the file, row, column or argument, its value, and what was expected."""


class TrainingError(PolytaskError, RuntimeError):
    """Training cannot go on, as when a loss is not finite: the message names the task and the step."""


class MissingExtra(PolytaskError, ImportError):
    """An optional dependency is not installed: the message says what to install."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known name, or all of them when none is near.

    >>> suggest("uncertanty", ["equal", "uncertainty"])
    "did you mean 'uncertainty'?"
    >>> suggest("xyz", ["equal", "uncertainty"])
    'known: equal, uncertainty'
    """
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def optional(module: str, extra: str) -> ModuleType:
    """Import ``module``, or raise `MissingExtra` naming the extra of polytask that brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(f"this needs the package {module.split('.')[0]!r}: pip install 'polytask[{extra}]'") from error


def quoted(value: object) -> str:
    """A value from a file as an error prints it: on one line, and cut where it is very long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]}... ({len(text)} characters)"
