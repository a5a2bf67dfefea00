"""Every code block in README.md and docs/ is run.

The blocks of a page run in their order, in one folder and one Python namespace:

- ``python``: executed; lines that begin with ``>>>`` are a doctest, whose output is compared;
- ``console``, ``bash``: ``polytask`` commands run in this process; ``make`` and ``pip`` commands are checked to exist;
- ``json``: parsed.

A comparison is cut to a few examples, seeds and steps. After ``<!-- parse only -->`` a block is checked, not run: Python is
compiled, commands must exist with all their options. Other languages (``text``, ``yaml``, ``csv``) are for the eye.
"""

import dataclasses
import doctest
import functools
import json
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(
    r"^(?:<!-- *(?P<mark>[^>]*?) *-->\s*\n)?(?P<indent>[ ]*)```(?P<language>\w+)?[^\n]*\n(?P<text>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, and whether it is only to be checked."""

    page: Path
    line: int
    language: str
    text: str
    parse_only: bool

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """The command lines: those after ``$`` in a console, all in a script; comments and output are left out."""
        text = self.text.replace("\\\n", " ")
        for line in text.splitlines():
            if self.language == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
            words = shlex.split(line, comments=True)
            if words:
                yield words


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) % 2 == 0, f"{page}: a code block is not closed"
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        mark = found["mark"] or ""
        yield Block(page, line, found["language"] or "", textwrap.dedent(found["text"]), mark == "parse only")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cut_comparisons(monkeypatch)
    keep_registers(monkeypatch)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            run_python(block, namespace)
        elif block.language in ("console", "bash", "sh"):
            for words in block.commands():
                run_command(block, words, monkeypatch)
        elif block.language == "json":
            json.loads(block.text)


def cut_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `polytask.compare` do what it is asked on a few examples, with two seeds and a few steps."""
    import torch

    import polytask
    import polytask.comparison

    whole: Callable[..., Any] = polytask.comparison.compare

    @functools.wraps(whole)
    def cut(data: polytask.DataSet, *arguments: Any, **settings: Any) -> Any:
        parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
        few = {name: part.subset(torch.arange(min(150, len(part)))) for name, part in parts.items()}
        budget = {"seeds": 2, "steps": 2, "learning_rates": [1e-3], "weight_trials": 1, "equal_time": False, "workers": 1}
        small = dataclasses.replace(data, **few, settings={**data.settings, "batch_size": 32})
        return whole(small, *arguments, **settings | budget)

    # The package's own name first: it is looked up where it is asked for, and what is put back must be the function itself.
    monkeypatch.setattr(polytask, "compare", cut, raising=False)
    monkeypatch.setattr(polytask.comparison, "compare", cut)


def keep_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back what a page enrols, so that no other test meets it."""
    from polytask.balance import balancers
    from polytask.merge import merge_rules
    from polytask.share import insertables, sharings
    from polytask.store import encoders
    from polytask.task import Task

    for register in (balancers, encoders, insertables, merge_rules, sharings):
        monkeypatch.setattr(register, "_entries", dict(register.items()))
    monkeypatch.setattr(Task, "kinds", dict(Task.kinds))


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    if block.text.startswith(">>>"):
        example = doctest.DocTestParser().get_doctest(block.text, namespace, block.place, str(block.page), block.line - 1)
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        if not block.parse_only:
            failed = runner.run(example, out=report.append, clear_globs=False).failed
            assert not failed, "".join(report)
            namespace.update(example.globs)
        return
    # The blank lines give tracebacks the line numbers of the page.
    code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
    if not block.parse_only:
        exec(code, namespace)


def run_command(block: Block, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"{block.place}: {shlex.join(words)}"
    if words[0] == "polytask":
        check_options(words[1:], where)
        if not block.parse_only:
            run_polytask(words, where, monkeypatch)
    elif words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"{where}: no such target"
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        named = {extra for found in re.findall(r"\[([\w,]+)\]", shlex.join(words)) for extra in found.split(",")}
        assert named <= set(extras), f"{where}: no such extra"
    else:
        assert block.parse_only or words[0] in ("git", "cd"), f"{where}: cannot be run here; mark the block: parse only"


def check_options(words: list[str], where: str) -> None:
    """The command exists, and has every option that is named."""
    from polytask.cli.main import app

    command: click.Command = typer.main.get_command(app)  # type: ignore[assignment]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{where}: no such command"
        command, words = command.commands[words[0]], words[1:]
    known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]} | {
        "-h",
        "--help",
    }
    for word in words:
        if re.match(r"--?[a-zA-Z]", word):
            assert word.split("=")[0] in known | {"-h", "--help"}, f"{where}: no option {word}"


def run_polytask(words: list[str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from polytask.cli.main import main

    monkeypatch.setattr(sys, "argv", words)
    code: Any = 0
    try:
        main()
    except SystemExit as stopped:
        code = stopped.code
    assert not code, f"{where}: exit code {code}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: no {target}"


def test_the_readme_counts_and_shows_the_papers() -> None:
    from polytask.files import read_json
    from polytask.papers import catalogue
    from polytask.papers._table import markdown, summary

    text = PAGES[0].read_text(encoding="utf-8")
    assert f"{sum(entry.done for entry in catalogue())} of {len(catalogue())}" in text
    recorded = ROOT / "claims" / "results.json"
    if recorded.exists():
        results = read_json(recorded)
        assert summary(results) in text, "README.md: expected what 'make readme' writes"
        page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
        assert markdown(results) in page, "docs/claims.md: expected what 'make readme' writes"


def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]*?(?:src|href)=.?(https?:[^\"' >]+)", page.read_text(encoding="utf-8"))
        assert not loaded, f"{page.name} loads {loaded}"
