"""Equality with mergekit, where both define the same rule: the same YAML file and checkpoints, what is on disk after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from polytask.merge.merging import merge_checkpoints
from polytask.merge.recipe import open_inputs, read_recipe

transformers = pytest.importorskip("transformers")
pytest.importorskip("mergekit")

NAMES = ("base", "one", "two", "three")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama and three fine-tunes of it, whose task vectors differ in size and agree in part."""
    folder = tmp_path_factory.mktemp("models")
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config)
    common = [torch.randn_like(parameter) for parameter in base.parameters()]
    for number, name in enumerate(NAMES):
        model = transformers.LlamaForCausalLM(config)
        model.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter, shift in zip(model.parameters(), common, strict=True):
                parameter += number * 1e-3 * (torch.randn_like(parameter) + shift)
        model.save_pretrained(folder / name, max_shard_size="60KB")
    return folder


def models(*parameters: dict[str, Any], base: bool = True) -> list[dict[str, Any]]:
    named = [{"model": name, "parameters": own} for name, own in zip(NAMES[1:], parameters, strict=False)]
    return [{"model": "base"}, *named] if base else named


RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": models({"weight": 0.5}, {"weight": 2.0}, {"weight": 1.0}, base=False)},
    "linear, not normalised": {
        "merge_method": "linear",
        "models": models({"weight": 0.5}, {"weight": 0.2}, base=False),
        "parameters": {"normalize": False},
    },
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": models({"weight": 0.3}, {"weight": -0.4}, {"weight": 1.0}),
        "parameters": {"lambda": 0.7},
    },
    "ties": {
        "merge_method": "ties",
        "base_model": "base",
        "models": models(*({"weight": w, "density": d} for w, d in ((1.0, 0.5), (0.7, 0.2), (0.3, 0.9)))),
        "parameters": {"lambda": 0.9},
    },
    "ties, not normalised": {
        "merge_method": "ties",
        "base_model": "base",
        "models": models({"weight": 1.0}, {"weight": 0.5}, {"weight": 0.25}),
        "parameters": {"density": 0.4, "normalize": False},
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "base_model": "base",
        "models": models({"weight": 1.0}, {"weight": 0.5}, {"weight": 0.7}),
        "parameters": {"density": 0.3, "gamma": 0.05},
    },
    "breadcrumbs_ties": {
        "merge_method": "breadcrumbs_ties",
        "base_model": "base",
        "models": models({"weight": 1.0}, {"weight": 0.5}, {"weight": 0.7}),
        "parameters": {"density": 0.3, "gamma": 0.05},
    },
    "slerp": {
        "merge_method": "slerp",
        "base_model": "one",
        "models": [{"model": "one"}, {"model": "three"}],
        "parameters": {"t": 0.3},
    },
    "slerp over the depth": {
        "merge_method": "slerp",
        "base_model": "one",
        "models": [{"model": "one"}, {"model": "three"}],
        "parameters": {
            "t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": [1, 0]}, {"value": 0.5}]
        },
    },
    "slerp of slices": {
        "merge_method": "slerp",
        "base_model": "one",
        "slices": [{"sources": [{"model": name, "layer_range": [0, 3]} for name in ("one", "two")]}],
        "parameters": {"t": [{"filter": "self_attn", "value": [0, 1]}, {"value": 0.4}]},
    },
    "model_stock": {"merge_method": "model_stock", "base_model": "base", "models": models({}, {}, {})},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_mergekit_gives_what_mergekit_gives(name: str, folder: Path, tmp_path: Path) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    recipe = RECIPES[name] | {"dtype": "float32"}
    written = folder / f"{name}.yaml"
    written.write_text(yaml.safe_dump(recipe))
    ready = read_recipe(written)
    plan = open_inputs(ready)
    settings = ready.settings.spread_over(plan.merged)
    merge_checkpoints(settings, plan, tmp_path / "ours", about=ready.text, dtype=ready.dtype, out_dtype=ready.out_dtype)

    theirs = yaml.safe_load(written.read_text().replace("model: ", f"model: {folder}/"))
    run_merge(MergeConfiguration.model_validate(theirs), str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=False))

    ours, expected = (
        {key: value for file in sorted((tmp_path / side).glob("*.safetensors")) for key, value in load_file(file).items()}
        for side in ("ours", "theirs")
    )
    assert ours.keys() == expected.keys()
    base = {key: value for file in (folder / "base").glob("*.safetensors") for key, value in load_file(file).items()}
    assert any(not torch.equal(expected[key], base[key]) for key in base)
    for key, value in expected.items():
        # What is compared is the change: a few errors of float32 in weights up to 1 are far below a wrongly kept entry.
        torch.testing.assert_close(
            ours[key] - base[key], value - base[key], rtol=0, atol=4e-7, msg=lambda m, key=key: f"{key}: {m}"
        )
