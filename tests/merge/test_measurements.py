"""What was measured, on disk: files, and recipes that name them."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.merge.folders import make_folder, words
from tests.merge.rules.models import Weights
from torch import Tensor

from polytask.errors import InputError
from polytask.merge import Gram, merge_checkpoints, open_checkpoint, output, save_measured
from polytask.merge.recipe import Ready, open_inputs, read_recipe

SHAPES = {"linear.weight": (300, 40), "conv1d.weight": (40, 90), "bias": (5000,)}
NAMES = ("a", "b", "c")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fisher(k: int) -> Weights:
    return {name: draw(50 + k, *shape).square().float() for name, shape in SHAPES.items()}


def grams(k: int) -> dict[str, Gram]:
    x, y = draw(70 + k, 60, 40), draw(80 + k, 60, 40)
    return {"linear.weight": Gram(x.T @ x / 60, 60), "conv1d.weight": Gram(y.T @ y / 60, 60, inputs_first=True)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, name in enumerate(NAMES):
        model = {tensor: draw(10 * k + i, *shape).float() for i, (tensor, shape) in enumerate(SHAPES.items())}
        save_file(model, tmp_path / f"{name}.safetensors")
        save_measured(tmp_path / f"{name}-fisher.safetensors", fisher(k))
        save_measured(tmp_path / f"{name}-regmean.safetensors", grams(k))
    return tmp_path


def text(rule: str) -> str:
    models = "".join(f"- model: {name}.safetensors\n  measured: {name}-{rule}.safetensors\n" for name in NAMES)
    return f"rule: {rule}\ndtype: float64\nout_dtype: float64\nmodels:\n{models}"


def read(folder: Path, text: str) -> Ready:
    (folder / "recipe.yaml").write_text(text)
    return read_recipe(folder / "recipe.yaml")


def models(folder: Path) -> list[Weights]:
    return [{n: t.double() for n, t in load_file(folder / f"{name}.safetensors").items()} for name in NAMES]


def by_fisher(folder: Path) -> Weights:
    found = [{name: values.double() for name, values in fisher(k).items()} for k in range(3)]
    lengths = [torch.cat([values.flatten() for values in each.values()]).norm() for each in found]
    merged = {}
    for name in SHAPES:
        parts = torch.stack([(each[name] / length).clamp(min=1e-6) for each, length in zip(found, lengths, strict=True)])
        merged[name] = (parts * torch.stack([m[name] for m in models(folder)])).sum(0) / parts.sum(0)
    return merged


def by_regmean(folder: Path) -> Weights:
    merged = {"bias": torch.stack([m["bias"] for m in models(folder)]).mean(0)}
    for name in ("linear.weight", "conv1d.weight"):
        own = [grams(k)[name].matrix for k in range(3)]
        own = [0.9 * g + 0.1 * g.diag().diag() for g in own]
        ws = [m[name].T if name == "linear.weight" else m[name] for m in models(folder)]
        found = torch.linalg.solve(
            sum(own, torch.zeros(())), sum((g @ w for g, w in zip(own, ws, strict=True)), torch.zeros(()))
        )
        merged[name] = found.T if name == "linear.weight" else found
    return merged


@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_a_recipe_merges_files_as_the_formula_says(folder: Path, rule: str) -> None:
    ready = read(folder, text(rule))
    results = []
    for i, (chunk, threads) in enumerate(((4096, 1), (2**16, 1), (4096, 3))):
        merge_checkpoints(
            ready.settings,
            open_inputs(ready),
            folder / f"out{i}",
            about=ready.text,
            dtype=ready.dtype,
            out_dtype=ready.out_dtype,
            chunk=chunk,
            threads=threads,
        )
        results.append(load_file(folder / f"out{i}" / "model.safetensors"))
    expected = {"fisher": by_fisher, "regmean": by_regmean}[rule](folder)
    for name, tensor in expected.items():
        torch.testing.assert_close(results[0][name], tensor, rtol=1e-6, atol=1e-8)
        assert all(torch.equal(result[name], results[0][name]) for result in results)
    card = (folder / "out0" / "README.md").read_text()
    assert f"a-{rule}.safetensors`" in card


def test_a_merge_that_was_killed_does_not_go_on_with_other_measurements(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "NOTED_EVERY", -1)  # what is done is noted at once
    ready = read(folder, text("fisher"))

    def merge(stop: bool) -> list[str]:
        seen: list[str] = []

        def progress(name: str, elements: int) -> None:
            seen.append(name)
            if stop:
                raise KeyboardInterrupt

        try:
            merge_checkpoints(ready.settings, open_inputs(ready), folder / "out", about=ready.text, progress=progress)
        except KeyboardInterrupt:
            assert stop
        return seen

    names = sorted(SHAPES)
    assert merge(stop=True) == names[:1] and merge(stop=True) == names[1:2]
    os.utime(folder / "b-fisher.safetensors", (1, 1))
    assert merge(stop=False) == names  # all over again


def test_rows_that_are_matched_by_token_are_refused(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "model", words("a b c"), rows=4)
    make_folder(tmp_path / "base", words("b a c"), rows=4)
    save_measured(tmp_path / "fisher.safetensors", model)
    recipe = "rule: fisher\nbase_model: base\nmodels: [{model: model, measured: fisher.safetensors}]\n"
    ready = read(tmp_path, recipe + "policy: {vocabulary: base}\n")
    with pytest.raises(InputError, match=r"fisher\.safetensors: tensor 'lm_head.weight' has rows that are matched by token"):
        open_inputs(ready)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  measured: b-fisher.safetensors\n", "", "line 7: fisher needs what was measured of every model"),
        ("rule: fisher", "rule: average", "line 6: average needs nothing that was measured"),
        ("rule: fisher", "merge_method: linear", "line 6: average needs nothing that was measured"),
        ("b-fisher", "none", r"line 8: 'none\.safetensors': no such file"),
        ("dtype: float64\nout", "parameters: {floor: 0}\nout", "line 2: floor 0: expected a finite number above 0"),
        ("dtype: float64\nout", "parameters: {weight: -1}\nout", r"line 2: weights \[-1.0\]: expected"),
        ("rule: fisher", "rule: regmean\nparameters: {shrink: 2}", "line 2: shrink 2: expected a number from 0 to 1"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_own(folder: Path, old: str, new: str, message: str) -> None:
    assert old in text("fisher")
    with pytest.raises(InputError, match=message) as error:
        read(folder, text("fisher").replace(old, new))
    assert "\n" not in str(error.value)


def test_what_does_not_fit_leaves_no_folder(folder: Path) -> None:
    """Gram matrices where Fisher values are expected."""
    ready = read(folder, text("regmean").replace("rule: regmean", "rule: fisher"))
    with pytest.raises(InputError, match=r"'conv1d\.weight': shape \[40, 40\], expected \[40, 90\]"):
        merge_checkpoints(ready.settings, open_inputs(ready), folder / "out", about=ready.text)
    assert not (folder / "out").exists()


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    save_measured(tmp_path / "grams.safetensors", grams(0))
    with open_checkpoint(tmp_path / "grams.safetensors") as found:
        assert found.metadata["inputs_first"] == '["conv1d.weight"]'
        assert torch.equal(found.read("linear.weight").view(40, 40), grams(0)["linear.weight"].matrix)
    shared = torch.rand(4, 3)
    save_measured(tmp_path / "fisher.safetensors", {"one": shared, "other": shared, "turned": shared.T})
    assert torch.equal(load_file(tmp_path / "fisher.safetensors")["turned"], shared.T)
    assert {path.name for path in tmp_path.iterdir()} == {"grams.safetensors", "fisher.safetensors"}
    with pytest.raises(InputError, match=r"expected a name that ends in \.safetensors"):
        save_measured(tmp_path / "fisher.bin", {"w": shared})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_measured(tmp_path / "file" / "fisher.safetensors", {"w": shared})
