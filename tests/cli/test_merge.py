"""The command ``merge``, as it is typed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.command import polytask, refused

RECIPE = """\
rule: task_arithmetic
base_model: base.safetensors
models: [{model: one.safetensors}, {model: two.safetensors}]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for k, name in enumerate(("base", "one", "two")):
        save_file({"w": torch.full((300,), float(k)), "ids": torch.arange(3)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "mixed.yaml").write_text(RECIPE)
    return tmp_path / "mixed.yaml"


def test_a_recipe_becomes_a_folder_beside_it(recipe: Path) -> None:
    done = polytask("merge", recipe)
    assert done.code == 0, done.err
    assert "300 numbers merged" in done.err
    found = load_file(recipe.with_suffix("") / "model.safetensors")
    torch.testing.assert_close(found["w"], torch.full((300,), 0.3 * 3))
    assert found["ids"].tolist() == [0, 1, 2]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(recipe: Path) -> None:
    before = set(recipe.parent.iterdir())
    done = polytask("merge", recipe, "--dry-run", "-o", recipe.parent / "out")
    assert done.code == 0, done.err
    for word in ("TaskArithmetic", "300 numbers", "1 tensor: ids", "1,224 bytes", "MB"):
        assert word in done.out, word
    assert set(recipe.parent.iterdir()) == before


def test_a_mistake_is_one_line_and_exit_code_2(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("two.", "three."))
    line = refused("merge", recipe)
    assert line.endswith("mixed.yaml: line 3: 'three.safetensors': no such file or folder, expected a checkpoint")
