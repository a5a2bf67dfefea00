"""Recipes: ours and mergekit's, with every mistake on its line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polytask.errors import InputError
from polytask.merge import DARE, SLERP, TIES, Average, Breadcrumbs, Policy, TaskArithmetic, merge_checkpoints, save_weights
from polytask.merge.recipe import Ready, open_inputs, read_recipe

HEAD = """\
base_model: base.safetensors
models:
- model: a.safetensors
- model: b.safetensors
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, name in enumerate(("base", "a", "b")):
        save_file({"layers.0.w": torch.full((3,), float(k)), "layers.4.w": torch.ones(3)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def read(folder: Path, text: str) -> Ready:
    (folder / "recipe.yaml").write_text(text)
    return read_recipe(folder / "recipe.yaml")


def test_a_recipe_names_a_rule_and_its_inputs(folder: Path) -> None:
    ready = read(folder, f"rule: ties\n{HEAD}parameters:\n  density: 0.3\n  scale: 0.5\n")
    assert ready.settings("w") == TIES(density=0.3, scale=0.5)
    assert ready.models == [folder / "a.safetensors", folder / "b.safetensors"] and ready.base == folder / "base.safetensors"
    assert ready.dtype == torch.float32 and ready.out_dtype is None
    plan = open_inputs(ready)
    assert list(plan.merged) == ["layers.0.w", "layers.4.w"]


def test_a_model_has_settings_of_its_own(folder: Path) -> None:
    text = """\
rule: task_arithmetic
base_model: base.safetensors
parameters: {weight: 2, scale: 1}
models:
- model: a.safetensors
  parameters: {weight: 0.5}
- model: b.safetensors
"""
    assert read(folder, text).settings("w") == TaskArithmetic(scale=1, weight=[0.5, 2])


def test_settings_change_over_the_depth_and_by_name(folder: Path) -> None:
    text = """\
rule: slerp
models: [{model: a.safetensors}, {model: b.safetensors}]
parameters:
  t:
  - {filter: mlp, value: [0, 0.5, 1]}
  - value: 0.25
"""
    settings = read(folder, text).settings.spread_over(["layers.0.mlp", "layers.4.mlp"])
    at = {name: settings(name).t for name in ("layers.0.mlp", "layers.1.mlp", "layers.4.mlp", "layers.3.attn", "norm")}  # type: ignore[attr-defined]
    assert at == {"layers.0.mlp": 0, "layers.1.mlp": 0.25, "layers.4.mlp": 1, "layers.3.attn": 0.25, "norm": 0.25}


@pytest.mark.parametrize(
    ("method", "parameters", "expected"),
    [
        ("linear", "", Average()),
        ("linear", "normalize: false", Average(normalize=False)),
        ("task_arithmetic", "lambda: 0.5", TaskArithmetic(scale=0.5)),
        ("ties", "density: 0.5", TIES(density=0.5, scope="tensor")),
        ("ties", "normalize: false\n  int8_mask: true", TIES(density=1.0, scope="tensor", merge_by="sum")),
        ("dare_linear", "density: 0.5", DARE(density=0.5)),
        ("dare_ties", "density: 0.5", DARE(density=0.5, elect=True, merge_by="sum")),
        ("breadcrumbs", "density: 0.5", Breadcrumbs(density=0.5, gamma=0.01, scale=1.0)),
    ],
)
def test_mergekits_own_recipes_are_read(folder: Path, method: str, parameters: str, expected: object) -> None:
    text = f"merge_method: {method}\n{HEAD}dtype: bfloat16\n" + (f"parameters:\n  {parameters}\n" if parameters else "")
    ready = read(folder, text)
    assert ready.settings("w") == expected
    assert ready.dtype == torch.float32 and ready.out_dtype == torch.bfloat16


def test_mergekits_base_among_the_models_is_only_the_base(folder: Path) -> None:
    text = """\
merge_method: ties
base_model: base.safetensors
models:
- model: base.safetensors
- {model: {model: {path: a.safetensors}}, parameters: {weight: 0.5}}
"""
    ready = read(folder, text)
    assert ready.models == [folder / "a.safetensors"] and ready.settings("w").weight == [0.5]  # type: ignore[attr-defined]
    both = "models: [{model: a.safetensors}, {model: base.safetensors}]\n"
    slerp = read(folder, f"merge_method: slerp\nbase_model: base.safetensors\n{both}parameters: {{t: 0.25}}\n")
    assert slerp.models == [folder / "base.safetensors", folder / "a.safetensors"] and slerp.base is None
    assert slerp.settings("w") == SLERP(t=0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule: ties\nmodels: [\n", r"line 3: no valid YAML"),
        ("- rule\n", r"line 1: expected settings by name"),
        (f"rule: ties\n{HEAD}paramters: {{}}\n", r"line 6: unknown setting 'paramters'"),
        (f"rule: tise\n{HEAD}", r"line 1: unknown rule 'tise': did you mean 'ties'\?"),
        (f"{HEAD}merge_method: tis\n", r"line 5: unknown method 'tis': did you mean 'ties'\?"),
        (HEAD, r"line 1: expected a rule"),
        (f"rule: ties\n{HEAD}parameters:\n  scale: 1\n  densty: 0.1\n", r"line 8: unknown setting 'densty': did you mean"),
        (f"rule: ties\n{HEAD}  parameters:\n    wieght: 1\n", r"line 7: unknown setting 'wieght': did you mean 'weight'"),
        (f"rule: ties\n{HEAD}parameters:\n  density: 2\n", r"line 6: density 2: expected a number from 0 to 1"),
        (f"rule: ties\n{HEAD}dtype: int4\n", r"line 6: 'dtype': input should be .* got 'int4'"),
        (f"rule: ties\n{HEAD}- model: c.safetensors\n", r"line 6: 'c.safetensors': no such file or folder"),
        ("rule: ties\nmodels: []\n", r"line 2: 'models': list should have at least 1"),
        ("rule: ties\n", r"line 1: 'models' is missing"),
        (f"merge_method: model_stock\n{HEAD}parameters: {{normalize: true}}\n", r"line 6: model_stock does not normalise"),
        (f"rule: ties\n{HEAD}parameters:\n  density: a\n", r"line 7: 'density': input should be a valid number.*got 'a'"),
        (f"rule: ties\n{HEAD}parameters:\n  scope: whole\n", r"line 7: 'scope': input should be 'model' or 'tensor'"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_own(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(folder, text)
    assert "\n" not in str(error.value).strip() and "recipe.yaml" in str(error.value)


def test_a_policy_for_vocabularies(folder: Path) -> None:
    policy = "policy: {vocabulary: union, vocabulary_tensors: ['*.tok', '*.out']}\n"
    assert read(folder, f"rule: ties\n{HEAD}{policy}").policy == Policy(
        vocabulary="union", vocabulary_tensors=("*.tok", "*.out")
    )
    assert read(folder, f"rule: ties\n{HEAD}").policy.vocabulary == "error"
    with pytest.raises(InputError, match=r"line 6: 'policy.vocabulary': input should be 'error', 'base' or 'union'"):
        read(folder, f"rule: ties\n{HEAD}policy: {{vocabulary: both}}\n")


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


def test_a_tensor_that_no_filter_matches_is_one_line_also_once_merging_has_begun(folder: Path) -> None:
    filters = "parameters:\n  scale: [{filter: '^$', value: 1}, {filter: mlp, value: 0.5}]\n"
    settings = read(folder, f"rule: ties\n{HEAD}{filters}").settings
    with pytest.raises(InputError, match=r"no filter matches tensor 'layers\.0\.w'"):
        settings("layers.0.w")


def test_weights_by_tensor_come_from_a_file(folder: Path) -> None:
    weights = {"layers.0.w": [0.5, 0.25], "layers.4.w": [1.0, -1.0]}
    save_weights(folder / "learned.json", weights)
    text = f"rule: task_arithmetic\n{HEAD}parameters: {{scale: 1, weight: learned.json}}\n"
    ready = read(folder, text)
    assert ready.settings("layers.4.w") == TaskArithmetic(scale=1, weight=[1.0, -1.0])
    merge_checkpoints(ready.settings, open_inputs(ready), folder / "out", about=ready.text)
    assert load_file(folder / "out" / "model.safetensors")["layers.0.w"].tolist() == [0.5 * 1 + 0.25 * 2] * 3
    save_weights(folder / "learned.json", weights | {"layers.0.w": [0.0, 0.0]})
    assert read(folder, text).text != ready.text  # a run that was killed does not go on with other weights
    with pytest.raises(InputError, match=r"learned\.json: tensor 'other' has no weights"):
        ready.settings("other")
    (folder / "learned.json").write_text("{}")
    with pytest.raises(InputError, match=r"learned\.json: no weights by tensor"):
        read(folder, text)
    with pytest.raises(InputError, match=r"line 6: 'lerned\.json': no such file"):
        read(folder, text.replace("learned", "lerned"))


SLICED = """\
merge_method: slerp
base_model: a
slices:
- sources:
  - model: a
    layer_range: [0, 5]
  - model: b
    layer_range: [0, 5]
parameters: {t: 0.25}
tokenizer_source: union
"""


def test_one_slice_of_all_layers_is_a_list_of_models(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"num_hidden_layers": 5}')
    ready = read(tmp_path, SLICED)
    assert ready.models == [tmp_path / "a", tmp_path / "b"] and ready.settings("") == SLERP(0.25)
    assert ready.policy == Policy(vocabulary="union")
    assert read(tmp_path, SLICED.replace("tokenizer_source: union", "tokenizer: {source: base}")).policy.vocabulary == "base"
    for old, new, message in [
        (
            "model: b\n    layer_range: [0, 5]",
            "model: b\n    layer_range: [0, 4]",
            r"line 8: layer_range \[0, 4\]: expected \[0, 5\]",
        ),
        ("model: b\n", "model: c\n", "line 8: layer_range .* expected all, and a config.json"),
        ("- sources:", "- sources: []\n- sources:", "line 3: expected one slice"),
        ("tokenizer_source: union", "tokenizer_source: a", "line 10: 'a': expected 'base' or 'union'"),
        ("model: b\n", "modle: b\n", "line 7: "),
        ("slices:", "models: [{model: a}]\nslices:", "both models and slices"),
    ]:
        assert old in SLICED
        with pytest.raises(InputError, match=message):
            read(tmp_path, SLICED.replace(old, new))
