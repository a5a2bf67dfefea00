"""Puts what was last run into README.md and docs/: the demo, the claims' verdicts, a picture (``make readme``)."""

import io
import re
import shutil
from pathlib import Path

from rich.console import Console

from polytask.files import read_json, write_text
from polytask.papers import catalogue
from polytask.papers._table import markdown, summary
from polytask.report import picture, terminal_table

ROOT = Path(__file__).parent.parent
README, PAGE = ROOT / "README.md", ROOT / "docs" / "claims.md"
DEMO, CLAIMS = ROOT / "demo" / "results.json", ROOT / "claims" / "results.json"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    if DEMO.exists():
        results = read_json(DEMO)
        picture(results, ROOT / "docs" / "report.png", scale=1.5)
        text = _replaced(text, "demo", f"```text\n{_demo(results)}\n```")
    if CLAIMS.exists():
        results = read_json(CLAIMS)
        text = _replaced(text, "claims", summary(results))
        write_text(PAGE, _replaced(PAGE.read_text(encoding="utf-8"), "claims", markdown(results)))
        shutil.copyfile(CLAIMS.with_name("nat.png"), ROOT / "docs" / "streams.png")
    entries = catalogue()
    done = sum(entry.done for entry in entries)
    row = f"| papers | {done} of {len(entries)} | {len(entries) - done}, which `polytask papers` lists |"
    write_text(README, re.sub(r"^\| papers \|.*$", lambda _: row, text, flags=re.MULTILINE))


def _demo(results: dict) -> str:  # type: ignore[type-arg]
    """What the terminal shows of a comparison, without the tables of single tasks."""
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_table(results))
    lines = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
    return re.sub(r"\n\n.*\n\n▲", "\n…\n\n▲", lines, flags=re.DOTALL).strip("\n")


def _replaced(text: str, name: str, new: str) -> str:
    """``text`` with what stands between the comments ``<!-- name -->`` and ``<!-- end -->`` replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
    return re.sub(pattern, lambda found: found[1] + new + found[2], text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
