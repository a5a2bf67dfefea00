"""The command ``interference``, as it is typed once it is registered."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.cli.command import polytask, refused

RECIPE = """\
rule: ties
base_model: base.safetensors
models: [{model: french.safetensors}, {model: code.safetensors}]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "french", "code"):
        weights = {f"layers.{i}.w": torch.randn(10, 30, generator=generator) for i in range(2)}
        save_file(weights | {"ids": torch.arange(3)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "mixed.yaml").write_text(RECIPE)
    return tmp_path / "mixed.yaml"


def test_findings_are_shown_and_written(recipe: Path) -> None:
    out = recipe.parent / "found"
    done = polytask("interference", recipe, "--out", out, "--density", 0.5)
    assert done.code == 0, done.err
    for word in ("french.safetensors", "code.safetensors", "600 numbers", "opposite signs", "largest 50 %", "layers.1"):
        assert word in done.out, word
    assert (out / "interference.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "interference.json").read_text())
    assert found["models"] == ["french.safetensors", "code.safetensors"]
    assert list(found["layers"]) == ["layers.0", "layers.1"] and sorted(found["tensors"]) == ["layers.0.w", "layers.1.w"]
    assert sum(found["whole"]["votes"]) == 600
    assert sorted(path.name for path in out.iterdir()) == ["interference.json", "interference.png"]


def test_json_for_a_machine(recipe: Path) -> None:
    before = set(recipe.parent.iterdir())
    done = polytask("interference", recipe, "--json")
    assert json.loads(done.out)["density"] == 0.2
    assert set(recipe.parent.iterdir()) == before


def test_mistakes_are_one_line(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("base_model: base.safetensors\n", ""))
    assert refused("interference", recipe).endswith("expected a base model")
    weights = {f"layers.{i}.w": torch.full((10, 30), torch.nan) for i in range(2)}
    save_file(weights | {"ids": torch.arange(3)}, recipe.parent / "code.safetensors")
    recipe.write_text(RECIPE)
    assert refused("interference", recipe) == "code.safetensors: tensor 'layers.0.w' has values that are not finite"
