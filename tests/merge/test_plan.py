"""Plans: what every header says is settled before data is read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from polytask.errors import InputError
from polytask.merge import Policy, make_plan, open_checkpoint
from polytask.merge.checkpoint import Checkpoint
from polytask.merge.plan import check_buffers


def on_disk(path: Path, **tensors: Tensor) -> Checkpoint:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)
    return open_checkpoint(path)


def test_tensors_are_merged_or_copied_by_their_kind(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2, 3), "ids": torch.arange(3), "mask": torch.ones(2, dtype=torch.bool), "none": torch.ones(0)}
    base, one = (on_disk(tmp_path / f"{k}.safetensors", **tensors) for k in "ab")
    plan = make_plan([one], base)
    assert list(plan.merged) == ["w"] and list(plan.copied) == ["ids", "mask", "none"]
    assert list(plan.output) == ["ids", "mask", "none", "w"] and plan.elements == 6 and plan.reference is base
    check_buffers(plan)


def test_what_is_missing_is_an_error_or_the_bases(tmp_path: Path) -> None:
    base = on_disk(tmp_path / "base.safetensors", a=torch.ones(2), b=torch.full((2,), 5.0))
    model = on_disk(tmp_path / "m.safetensors", a=torch.zeros(2))
    with pytest.raises(InputError, match=r"m\.safetensors: tensor 'b' of .*base\.safetensors missing.*policy missing: base"):
        make_plan([model], base)
    plan = make_plan([model], base, Policy(missing="base"))
    assert plan.sources()[0].read("b").tolist() == [5, 5] and plan.sources()[0].read("a").tolist() == [0, 0]
    with pytest.raises(InputError, match=r"expected in every model$"):
        make_plan([base, model], None, Policy(missing="base"))


def test_what_is_too_much_is_an_error_or_left_out(tmp_path: Path) -> None:
    base = on_disk(tmp_path / "base.safetensors", a=torch.ones(2))
    model = on_disk(tmp_path / "m.safetensors", a=torch.zeros(2), c=torch.zeros(3))
    with pytest.raises(InputError, match=r"tensor 'c' is not in .*policy extra: drop"):
        make_plan([model], base)
    plan = make_plan([model], base, Policy(extra="drop"))
    assert "only in" in plan.dropped["c"] and list(plan.output) == ["a"]


def test_a_tied_weight_that_one_model_repeats_is_left_out(tmp_path: Path) -> None:
    weight = torch.randn(4, 2)
    base = on_disk(tmp_path / "base.safetensors", embed=torch.ones(4, 2))
    model = on_disk(tmp_path / "m.safetensors", embed=weight, lm_head=weight.clone())
    plan = make_plan([model], base)
    assert plan.dropped["lm_head"].startswith("tied: repeats 'embed'")


def test_shapes_and_kinds_have_to_be_those_of_the_reference(tmp_path: Path) -> None:
    base = on_disk(tmp_path / "base.safetensors", a=torch.ones(2, 3))
    with pytest.raises(InputError, match=r"m\.safetensors: tensor 'a' has shape \[3, 2\], expected \[2, 3\] as in"):
        make_plan([on_disk(tmp_path / "m.safetensors", a=torch.ones(3, 2))], base)
    with pytest.raises(InputError, match=r"tensor 'a' is of torch.int64, expected torch.float32"):
        make_plan([on_disk(tmp_path / "n.safetensors", a=torch.ones(2, 3, dtype=torch.int64))], base)
    plan = make_plan([on_disk(tmp_path / "half.safetensors", a=torch.ones(2, 3, dtype=torch.float16))], base)
    assert plan.output["a"].dtype == torch.float32
    with pytest.raises(InputError, match="no models"):
        make_plan([], base)


def test_whole_numbers_that_differ_are_an_error_or_the_bases(tmp_path: Path) -> None:
    base = on_disk(tmp_path / "base.safetensors", ids=torch.arange(3))
    model = on_disk(tmp_path / "m.safetensors", ids=torch.arange(3) + 1)
    with pytest.raises(InputError, match=r"m\.safetensors: tensor 'ids' of torch.int64 is not that of"):
        check_buffers(make_plan([model], base))
    check_buffers(make_plan([model], base, Policy(buffers="base")))
