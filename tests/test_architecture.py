"""Imports go down only: docs/architecture.md as a test."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "polytask"

# From the ground up. What stands on a line may import from the lines above it in this list, never from a neighbour on its
# own line: so no verb imports another verb.
ORDER = [
    "errors",
    "files nn pareto peft_format register scope statistics workers",
    "claim cost journal task",
    "data paper",
    "share balance merge shrink route scale measure",  # floor 1: the verbs
    "method model",  # floor 2: from a model to a report
    "training",
    "report store",
    "comparison export fitting predicting shrinking",
    "events",
    "papers testing",  # floor 3
    "web",  # floor 4
    "cli",
]
RANK = {name: rank for rank, line in enumerate(ORDER) for name in line.split()}

MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import, expected the full name"
            if node.module == "polytask":
                yield from (f"polytask.{alias.name}" for alias in node.names if alias.name != "__version__")
            elif node.module:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    own = name_of(path).split(".")
    assert own[1] in RANK, f"{own[1]}: give it a place in ORDER, here and in docs/architecture.md"
    for module in imports(path):
        other = module.split(".")
        if other[0] != "polytask" or other[1:2] in ([], own[1:2]):
            continue
        assert RANK[other[1]] < RANK[own[1]], f"{name_of(path)} imports {module}, which does not stand below it"


@pytest.mark.parametrize("path", [path for path in MODULES if path.is_relative_to(SOURCE / "papers")], ids=name_of)
def test_papers_do_not_import_one_another(path: Path) -> None:
    own = name_of(path).split(".")
    for module in imports(path):
        other = module.split(".")
        if other[:2] == ["polytask", "papers"] and len(other) > 2:
            assert other[2] == own[2] or other[2].startswith("_"), f"{name_of(path)} imports {module}"


def test_the_command_line_starts_without_torch() -> None:
    modules = [name_of(path) for path in MODULES if RANK[name_of(path).split(".")[1]] == RANK["cli"]]
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["False"], found.stderr


def test_importing_polytask_imports_none_of_its_parts() -> None:
    code = "import sys, polytask; print(*sorted(m for m in sys.modules if m.startswith(('torch', 'numpy', 'polytask.'))))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(item for extra in project["optional-dependencies"].values() for item in extra)]
    declared = {re.split(r"[^\w.-]", item)[0].lower().replace("_", "-") for item in wanted}
    distributions = importlib.metadata.packages_distributions()
    for path in MODULES:
        for module in imports(path):
            top = module.split(".")[0]
            if top != "polytask" and top not in sys.stdlib_module_names:
                owners = {name.lower().replace("_", "-") for name in distributions.get(top, [top])}
                assert owners & declared, f"{name_of(path)} imports {top}, which pyproject.toml does not ask for"


def test_the_documented_order_is_this_one() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for line in ORDER:
        for name in line.split():
            assert re.search(rf"^ .*\b{name}(/|\.py)?\s", page, re.MULTILINE), f"docs/architecture.md: no {name}"


def test_a_process_that_trains_does_not_load_torchs_compiler() -> None:
    """It takes as long to import as torch itself, and only who compiles needs it."""
    code = "import sys, polytask.fitting, polytask.comparison; print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
