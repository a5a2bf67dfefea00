"""Interference beside plain sums over whole float64 arrays."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.merge.rules.models import SHAPES, Weights, make_models, quantised

from polytask.errors import InputError
from polytask.merge import Policy, make_plan, open_checkpoint
from polytask.merge.comparison import Interference, Part, interference, interference_of, layer_of, short_names


def expected(base: Weights, models: list[Weights], name: str, density: float) -> dict[str, Any]:
    """What is to be found in one tensor, coordinate by coordinate."""
    start = base[name].float()
    tau = np.stack([(model[name].float() - start).double().numpy().ravel() for model in models])
    count, n = tau.shape
    signs = np.zeros((count, n), dtype=int)
    for k in range(count):
        order = sorted(range(n), key=lambda p, k=k: (-abs(tau[k, p]), p))[: int(density * n)]  # type: ignore[misc]
        signs[k, order] = np.sign(tau[k, order])
    kept = signs != 0
    pairs = [[(kept[i] & kept[j]).sum() for j in range(count)] for i in range(count)]
    opposed = [[(signs[i] * signs[j] < 0).sum() for j in range(count)] for i in range(count)]
    return {
        "size": n,
        "kept": np.array(pairs),
        "opposed": np.array(opposed),
        "votes": np.array([(kept.sum(0) == v).sum() for v in range(count + 1)]),
        "conflicted": int(sum(bool((signs[:, p] > 0).any() and (signs[:, p] < 0).any()) for p in range(n))),
        "tau": tau,
        "base": start.double().numpy().ravel(),
    }


def assert_counts(part: Part, want: dict[str, Any]) -> None:
    assert part.size == want["size"] and part.conflicted == want["conflicted"]
    for name in ("kept", "opposed", "votes"):
        assert np.array_equal(getattr(part, name), want[name]), name


def write(folder: Path, weights: Weights, shards: int) -> Path:
    """A checkpoint in so many files."""
    folder.mkdir(parents=True)
    names = sorted(weights)
    placed = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(names)}
    for file in set(placed.values()):
        save_file({name: weights[name] for name in names if placed[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def same(one: Interference, other: Interference) -> bool:
    return all(
        np.array_equal(getattr(one.tensors[name], field), getattr(other.tensors[name], field))
        for name in one.tensors | other.tensors
        for field in ("size", "kept", "opposed", "votes", "conflicted", "products")
    )


@pytest.mark.parametrize("make", [make_models, quantised])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
def test_counts_are_exact_and_products_are_those_of_float64(make: Any, density: float) -> None:
    base, models = make(count=4)
    found = interference(models, base, density)
    assert sorted(found.tensors) == sorted(name for name in SHAPES if name != "f")  # which is empty
    for name, part in found.tensors.items():
        want = expected(base, models, name, density)
        assert_counts(part, want)
        rows = np.vstack([want["tau"], want["base"]])
        np.testing.assert_allclose(part.products, rows @ rows.T, rtol=1e-11, atol=1e-13)


def test_measures_of_the_whole_and_of_layers() -> None:
    shapes = {"embed.weight": (9, 3), "layers.2.a": (40,), "layers.10.a": (5, 8), "layers.10.b": (7,), "head.weight": (6,)}
    base, models = make_models(3, shapes=shapes)
    found = interference(models, base, 0.3)
    assert list(found.layers) == ["embed", "layers.2", "layers.10", "head"]
    for names, part in (
        (list(shapes), found.whole),
        (["layers.10.a", "layers.10.b"], found.layers["layers.10"]),
        (["head.weight"], found.layers["head"]),
    ):
        parts = [expected(base, models, name, 0.3) for name in sorted(names)]
        tau = np.concatenate([want["tau"] for want in parts], 1)
        lengths = np.linalg.norm(tau, axis=1)
        kept, opposed, votes = (sum(want[what] for want in parts) for what in ("kept", "opposed", "votes"))
        own = kept.diagonal()
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(part.conflicts, opposed / kept)
        np.testing.assert_array_equal(part.overlap, kept / (own[:, None] + own - kept))
        assert part.conflict == sum(want["conflicted"] for want in parts) / votes[1:].sum()
        np.testing.assert_allclose(part.cosine, tau @ tau.T / np.outer(lengths, lengths), atol=1e-12)
        base_length = np.linalg.norm(np.concatenate([want["base"] for want in parts]))
        np.testing.assert_allclose(part.relative, lengths / base_length)
        assert part.cancelled == pytest.approx(1 - np.linalg.norm(tau.sum(0)) / lengths.sum())


@hypothesis_settings(max_examples=15)
@given(st.integers(1, 5), st.floats(0, 1), st.integers(0, 10**6), st.booleans())
def test_what_is_found_does_not_depend_on_chunks_or_shards(
    tmp_path_factory: pytest.TempPathFactory, count: int, density: float, seed: int, ties: bool
) -> None:
    base, models = quantised(seed, count) if ties else make_models(count, seed)
    whole = interference(models, base, density)
    folder = tmp_path_factory.mktemp("models")
    paths = [write(folder / str(k), model, shards=1 + (seed + k) % 3) for k, model in enumerate([base, *models])]
    plan = make_plan([open_checkpoint(path) for path in paths[1:]], open_checkpoint(paths[0]))
    assert same(whole, interference_of(plan, density, chunk=4096))
    assert whole.names == interference_of(plan, density, chunk=10**6).names
    assert_counts(whole.tensors["g"], expected(base, models, "g", density))


def test_twins_agree_and_opposites_cancel() -> None:
    base, (model,) = make_models(1)
    twin = {name: tensor.clone() for name, tensor in model.items()}
    found = interference([model, twin], base).whole
    assert found.conflict == 0 and found.overlap[0, 1] == 1
    assert found.cosine[0, 1] == pytest.approx(1) and found.cancelled == pytest.approx(0, abs=1e-12)
    zero = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    against = {name: -tensor for name, tensor in model.items()}
    found = interference([model, against], zero).whole
    assert found.conflict == found.conflicts[0, 1] == 1 and found.cancelled == 1
    assert found.cosine[0, 1] == pytest.approx(-1)
    assert np.isnan(found.relative).all()  # of a base of zeros


def test_frozen_and_untouched_tensors_are_null_in_json() -> None:
    base, models = make_models(3)
    for model in models:
        model["g"] = base["g"].clone()
    models[1] = dict(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = interference(models, base)
        said = found.to_json()
        found.plot()
    assert said["tensors"]["g"]["conflict"] is None and said["tensors"]["g"]["cosine"][0][2] is None
    assert said["tensors"]["g"]["votes"] == [base["g"].numel(), 0, 0, 0]
    assert said["whole"]["relative"][1] == 0 and said["whole"]["overlap"][1] == [0, None, 0]
    assert "NaN" not in json.dumps(said, allow_nan=False)


@pytest.mark.parametrize(("count", "dtype"), [(1, torch.float64), (2, torch.bfloat16), (8, torch.bfloat16)])
def test_numbers_of_models_and_precisions(count: int, dtype: torch.dtype) -> None:
    base, models = make_models(count, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = interference(models, base)
        json.dumps(found.to_json(), allow_nan=False)
        found.plot().savefig("/dev/null", format="png", dpi=30)
    assert found.whole.size == sum(t.numel() for t in base.values())
    assert found.whole.votes.sum() == found.whole.size
    assert_counts(found.tensors["a"], expected(base, models, "a", 0.2))


def test_whole_numbers_are_left_out_and_float64_is_kept() -> None:
    base = {"w": torch.ones(4, dtype=torch.float64), "ids": torch.arange(3)}
    model = {"w": torch.ones(4, dtype=torch.float64) + 1e-12, "ids": torch.arange(3)}
    assert list(interference([model], base).tensors) == ["w"]
    assert interference([model], base).whole.lengths[0] == 0
    assert interference([model], base, dtype=torch.float64).whole.lengths[0] == pytest.approx(2e-12, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_a_value_that_is_not_finite_is_traced(bad: float, density: float) -> None:
    base, models = make_models(2)
    models[1]["g"][40, 210] = bad
    models[1]["g"][0, 0] = -bad
    with pytest.raises(InputError, match=r"^code: tensor 'g' has values that are not finite$"):
        interference(models, base, density, names=["french", "code"])
    base["a"][0, 0] = bad
    with pytest.raises(InputError, match=r"^the base: tensor 'a' has values"):
        interference(models, base, density)


def test_what_cannot_be_compared() -> None:
    base, models = make_models(2)
    with pytest.raises(InputError, match=r"density 1.5: expected a number from 0 to 1"):
        interference(models, base, 1.5)
    with pytest.raises(InputError, match="1 names, expected one for each of 2 models"):
        interference(models, base, names=["one"])
    with pytest.raises(InputError, match="no models to compare"):
        interference([], base)
    with pytest.raises(InputError, match="no tensors of floating-point numbers to compare"):
        interference([{"ids": torch.arange(3)}], {"ids": torch.arange(3)})
    with pytest.raises(InputError, match="model 2: tensor 'extra'"):
        interference([models[0], models[1] | {"extra": torch.ones(1)}], base)


def test_a_plan_needs_a_base_and_fills_what_a_model_lacks(tmp_path: Path) -> None:
    base, models = make_models(2)
    without = {name: tensor for name, tensor in models[1].items() if name != "g"}
    paths = [write(tmp_path / name, w, 1) for name, w in (("base", base), ("one", models[0]), ("two", without))]
    opened = [open_checkpoint(path) for path in paths]
    with pytest.raises(InputError, match="expected a base model"):
        interference_of(make_plan([opened[1]], None))
    done: dict[str, int] = {}
    found = interference_of(
        make_plan(opened[1:], opened[0], Policy(missing="base")),
        progress=lambda name, n: done.update({name: done.get(name, 0) + n}),
    )
    assert found.names == ("one", "two")
    assert found.tensors["g"].lengths[1] == 0 and found.tensors["g"].lengths[0] > 0
    assert done == {name: part.size for name, part in found.tensors.items()}


def test_layers_and_short_names() -> None:
    tensors = ["model.layers.3.mlp.experts.7.weight", "encoder.block.0.layer.1.w", "0.weight", "head.bias", "scale"]
    assert [layer_of(name) for name in tensors] == ["model.layers.3", "encoder.block.0", "0", "head", "scale"]
    assert short_names([Path("x/a"), Path("x/b")]) == ["a", "b"]
    assert short_names([Path("x/a/model.bin"), Path("x/b/model.bin")]) == ["a/model.bin", "b/model.bin"]
    assert short_names([Path("x/a"), Path("x/a")]) == ["x/a", "x/a"]
