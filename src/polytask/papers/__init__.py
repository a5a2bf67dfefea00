"""The catalogue of published systems: one module for each, which composes polytask's parts and states the paper's claims.

`catalogue` lists all of them, `search` finds some, `load` imports one. Listing reads the literal fields of each module's
``PAPER`` from its source and imports none of them, so that it takes no torch and no time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path

from polytask.errors import InputError, suggest
from polytask.paper import Entry, Paper

__all__ = ["catalogue", "load", "search"]

HERE = Path(__file__).parent


@cache
def catalogue() -> tuple[Entry, ...]:
    """All entries by slug: the modules of this package, and those not yet written."""
    return tuple(sorted([*_written(), *_planned()], key=lambda entry: entry.slug))


def search(words: Sequence[str]) -> list[Entry]:
    """The entries that contain every word, anywhere in slug, title, family, verbs or status, in any case."""

    def text(entry: Entry) -> str:
        status = "done" if entry.done else "not yet"
        return " ".join([entry.slug, entry.title, entry.family, *entry.verbs, status]).lower()

    return [entry for entry in catalogue() if all(word.lower() in text(entry) for word in words)]


def load(slug: str) -> Paper:
    """The paper called ``slug``; `InputError` when it is unknown, with the nearest slug, or not yet written."""
    entries = {entry.slug: entry for entry in catalogue()}
    if slug not in entries:
        raise InputError(f"unknown paper {slug!r}: {suggest(slug, entries)}")
    if not entries[slug].done:
        raise InputError(
            f"the paper {slug!r} is not written yet; written: {', '.join(s for s in entries if entries[s].done)}"
        )
    paper = import_module(f"{__name__}.{slug}").PAPER
    assert isinstance(paper, Paper)
    return paper


def _written() -> Iterator[Entry]:
    for source in sorted([*HERE.glob("[!_]*.py"), *HERE.glob("[!_]*/__init__.py")]):
        yield _entry(source)


def _planned() -> Iterator[Entry]:
    """The lines of ``planned.tsv``: slug, title, family, verbs. A paper leaves it when its module enters the package."""
    for line in (HERE / "planned.tsv").read_text(encoding="utf-8").splitlines():
        slug, title, family, verbs = line.split("\t")
        yield Entry(slug, title, family, tuple(verbs.split(",")))


def _entry(source: Path) -> Entry:
    """The catalogue's fields of ``PAPER = Paper(...)`` in a source file."""
    names = {field.name for field in fields(Entry)}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAPER" and isinstance(node.value, ast.Call):
            return Entry(**{k.arg: ast.literal_eval(k.value) for k in node.value.keywords if k.arg in names})
    raise InputError(f"{source}: no PAPER = Paper(...) at the top level")
