"""The command ``merge``, as it is typed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.command import polytask, refused
from tests.merge.folders import make_adapter, make_folder, words

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


def test_a_dry_run_names_what_was_measured_and_its_bytes(recipe: Path) -> None:
    for name in ("one", "two"):
        save_file({"w": torch.ones(300)}, recipe.parent / f"{name}-fisher.safetensors")
    models = "".join(f"- {{model: {name}.safetensors, measured: {name}-fisher.safetensors}}\n" for name in ("one", "two"))
    recipe.write_text(f"rule: fisher\nmodels:\n{models}")
    done = polytask("merge", recipe, "--dry-run")
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    for word in ("Fisher", "one-fisher.safetensors", "measured", "2,400 bytes that were measured"):
        assert word in text, word
    assert polytask("merge", recipe).code == 0
    found = load_file(recipe.with_suffix("") / "model.safetensors")
    torch.testing.assert_close(found["w"], torch.full((300,), 1.5))


def test_vocabularies_that_differ_are_an_error_or_matched_as_the_plan_says(tmp_path: Path) -> None:
    make_folder(tmp_path / "base", words("a b c"), rows=4)
    one = make_folder(tmp_path / "one", words("b a c"), {"[b]": 3, "<x>": 4})
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text("rule: task_arithmetic\nbase_model: base\nmodels: [{model: one}]\nparameters: {scale: 1}\n")
    line = refused("merge", recipe)
    assert "one: token 'a' has row 1, and row 0 in" in line and "vocabulary: base" in line and "union" in line
    recipe.write_text(recipe.read_text() + "policy: {vocabulary: union}\n")
    done = polytask("merge", recipe, "--dry-run")
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    for said in (
        "vocabulary",
        "5 tokens",
        "embed_tokens.weight [5, 3]",
        "2 tokens that the base lacks, added ('[b]', '<x>')",
    ):
        assert said in text, said
    assert "2 tokens at other rows than in the base ('a', 'b')" in text
    done = polytask("merge", recipe)
    assert done.code == 0, done.err
    found = load_file(tmp_path / "mixed" / "model.safetensors")
    torch.testing.assert_close(found["lm_head.weight"], one["lm_head.weight"][[1, 0, 2, 3, 4]])


def test_adapters_become_an_adapter(tmp_path: Path) -> None:
    for k, name in enumerate(("one", "two"), 1):
        factors = {"q": (torch.full((2, 3), float(k)), torch.ones(4, 2))}
        make_adapter(tmp_path / name, factors)
    recipe = tmp_path / "both.yaml"
    recipe.write_text("rule: average\nmodels: [{model: one}, {model: two}]\nadapter: {rank: 1}\n")
    done = polytask("merge", recipe, "--dry-run")
    assert done.code == 0 and "cut to rank 1" in done.out and "0.5" in done.out, done.err
    assert not (tmp_path / "both").exists()
    done = polytask("merge", recipe)
    assert done.code == 0 and "1 modules merged, of rank 1" in done.err and "lost" in done.err, done.err
    found = load_file(tmp_path / "both" / "adapter_model.safetensors")
    a, b = (found[f"base_model.model.q.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(b @ a, torch.full((4, 3), 2 * 2 * 1.5))  # scaling 2, rank 2
    for old, new, message in [
        ("average", "ties", "line 3: factors can be added up, expected rule average or task_arithmetic, not ties"),
        ("rank: 1", "rank: 0", "line 3: 'adapter.rank'"),
        ("adapter", "parameters: {weight: [0, 1]}\nadapter", "line 3: 'weight' changes from tensor to tensor"),
    ]:
        written = recipe.read_text()
        recipe.write_text(written.replace(old, new))
        assert message in refused("merge", recipe, "-o", tmp_path / "other")
        recipe.write_text(written)


def test_a_mistake_is_one_line_and_exit_code_2(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("two.", "three."))
    line = refused("merge", recipe)
    assert line.endswith("mixed.yaml: line 3: 'three.safetensors': no such file or folder, expected a checkpoint")
