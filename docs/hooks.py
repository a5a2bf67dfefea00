"""Fills the tables of methods from polytask's registers, so that no page lists them a second time.

A page asks for a table by a comment: ``<!-- methods: polytask.balance.balancers -->``.
"""

import inspect
import pydoc
import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    return re.sub(r"<!-- methods: ([\w.]+) -->", lambda found: _table(found[1]), markdown)


def _table(register: str) -> str:
    entries: Any = pydoc.locate(register)
    rows = [f"| `{name}` | {_link(entry)} | {_first_paragraph(entry)} |" for name, entry in entries.items()]
    return "\n".join(["| name | in Python | what it is |", "|---|---|---|", *rows])


def _link(entry: Any) -> str:
    package = entry.__module__.rpartition(".")[0]
    while hasattr(pydoc.locate(above := package.rpartition(".")[0]), entry.__name__):
        package = above
    return f"[`{entry.__name__}`][{package}.{entry.__name__}]"


def _first_paragraph(entry: Any) -> str:
    text = " ".join((inspect.getdoc(entry) or "").split("\n\n")[0].split())
    return re.sub(r"``(.*?)``", r"`\1`", text.replace("|", "\\|"))
