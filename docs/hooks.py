"""Fills the tables of methods from polytask's registers, so that no page lists them a second time.

A page asks for a table by a comment: ``<!-- methods: polytask.balance.balancers -->``.
"""

import inspect
import re
from importlib import import_module
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    return re.sub(r"<!-- methods: ([\w.]+) -->", lambda found: _table(found[1]), markdown)


def _table(register: str) -> str:
    module, name = register.rsplit(".", 1)
    entries = getattr(import_module(module), name)
    rows = [f"| `{key}` | {_link(module, entry)} | {_first_sentence(entry)} |" for key, entry in entries.items()]
    return "\n".join(["| name | in Python | what it does |", "|---|---|---|", *rows])


def _link(module: str, entry: Any) -> str:
    name = entry.__name__
    return f"[`{name}`][{module}.{name}]" if hasattr(import_module(module), name) else f"`{name}`"


def _first_sentence(entry: Any) -> str:
    paragraph = " ".join(inspect.getdoc(entry).split("\n\n")[0].split())
    return re.sub(r"``(.*?)``", r"`\1`", paragraph.replace("|", "\\|"))
