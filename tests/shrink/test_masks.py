"""Masks: exact counts, held through training, sparse files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import polytask as pt
from polytask.errors import InputError
from polytask.shrink.masks import Masks, cubic, load_sparse, magnitude_masks, masks_by_score, save_sparse, stepwise


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5))


@given(st.floats(0, 1), st.sampled_from(["global", "layer"]))
def test_so_many_weights_go_and_the_smallest(sparsity: float, scope: str) -> None:
    model = network()
    masks = magnitude_masks(model, sparsity, scope)  # type: ignore[arg-type]
    assert set(masks.keep) == {"0.weight", "3.weight"}
    values = {name: model.get_parameter(name).detach().abs() for name in masks.keep}
    parts = [list(values)] if scope == "global" else [[name] for name in values]
    for names in parts:
        kept = torch.cat([values[name][masks.keep[name]] for name in names])
        gone = torch.cat([values[name][~masks.keep[name]] for name in names])
        assert len(gone) == round(sparsity * (len(kept) + len(gone)))
        assert not len(gone) or not len(kept) or gone.max() <= kept.min()


def test_equal_magnitudes_are_counted_too() -> None:
    model = nn.Linear(10, 1)
    nn.init.ones_(model.weight)
    assert magnitude_masks(model, 0.3).sparsity == pytest.approx(0.3)


def test_union_and_intersection() -> None:
    a = Masks({"x": torch.tensor([True, True, False]), "y": torch.tensor([False])})
    b = Masks({"x": torch.tensor([True, False, False]), "z": torch.tensor([False])})
    assert {name: mask.tolist() for name, mask in (a | b).keep.items()} == {"x": [True, True, False]}
    assert {name: mask.tolist() for name, mask in (a & b).keep.items()} == {
        "x": [True, False, False],
        "y": [False],
        "z": [False],
    }


@pytest.mark.parametrize("balance", ["equal", "mgda"])
def test_masks_are_held_while_a_model_trains(balance: str) -> None:
    data = pt.multidigits(tasks=("left", "ink"), size=64)
    model = pt.Model(data.encoder(), data.tasks)
    masks = magnitude_masks(model, 0.8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with masks.held(model):
        pt.fit(model, data.train, steps=3, weight_decay=0.1, balance=balance)
    for name, parameter in model.named_parameters():
        if name in masks.keep:
            assert (parameter[~masks.keep[name]] == 0).all()
            assert (parameter[masks.keep[name]] != before[name][masks.keep[name]]).any()
    pt.fit(model, data.train, steps=1)
    assert any((model.get_parameter(name)[~mask] != 0).any() for name, mask in masks.keep.items())


def test_momentum_from_before_is_taken_back_and_other_optimizers_are_left_alone() -> None:
    model, other = nn.Linear(4, 1), nn.Linear(4, 1)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (model, other)]
    for step in range(3):
        for m, optimizer in zip((model, other), optimizers, strict=True):
            m(torch.ones(1, 4)).sum().backward()
            if step:
                with magnitude_masks(model, 0.5).held(model):
                    optimizer.step()
            else:
                optimizer.step()
    assert (model.weight == 0).sum() == 2 and (other.weight != 0).all()


def test_a_gradual_schedule() -> None:
    values = [cubic(step, 10, 0.9, 0.1) for step in range(12)]
    assert values[0] == pytest.approx(0.1) and values[10] == values[11] == 0.9 and values == sorted(values)
    assert cubic(0, 0, 0.5) == 0.5  # one shot


def test_a_stepwise_schedule() -> None:
    assert [stepwise(epoch) for epoch in (0, 23, 24, 49, 224, 225, 349)] == [0, 0, 0.1, 0.2, 0.9, 0.9, 0.9]
    assert [stepwise(epoch, final=0.95) for epoch in (224, 249)] == [0.9, 0.95]


@given(st.integers(1, 300), st.floats(0, 1))
def test_as_many_are_left_as_the_threshold_of_the_kth_smallest_leaves(number: int, ratio: float) -> None:
    scores = torch.randperm(number, generator=torch.Generator().manual_seed(number)).float()
    k = int(ratio * number)
    left = int(masks_by_score({"w": scores}, ratio).keep["w"].sum())
    by_threshold = number if k < 1 else int((scores > scores.kthvalue(k).values).sum())
    assert by_threshold == number - k and left in (by_threshold, by_threshold - 1)  # the share is rounded to the nearest
    assert int(masks_by_score({"w": scores}, k / number).keep["w"].sum()) == by_threshold


def test_effective_masks_compute_as_zeros_do_and_store_what_was_there() -> None:
    model, zeroed = network().eval(), network().eval()
    masks, x = magnitude_masks(model, 0.6), torch.randn(4, 1, 4, 4)
    masks.apply(zeroed)
    stored, names, kinds = copy.deepcopy(model.state_dict()), list(model.state_dict()), [type(m) for m in model.modules()]
    with masks.effective(model):
        torch.testing.assert_close(model(x), zeroed(x), rtol=0, atol=0)
        assert list(model.state_dict()) == names and isinstance(model[0], nn.Conv2d)
        model(x).square().sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x), zeroed(x))
    for name, mask in masks.keep.items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None and (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert [type(m) for m in model.modules()] == kinds
    assert not torch.equal(model(x), zeroed(x))


def test_what_is_masked_decays_and_can_come_back() -> None:
    model = nn.Linear(4, 1, bias=False)
    model.weight.data.copy_(torch.tensor([[1.0, 0.9, 3.0, 0.1]]))
    (stored,) = model.parameters()
    optimizer = torch.optim.AdamW([stored], lr=0.1, weight_decay=0.2)
    first = magnitude_masks(model, 0.5)
    assert first.keep["weight"].tolist() == [[True, False, True, False]]
    with first.effective(model):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.tensor([1.0, 1.0, 0.0, 1.0])).square().sum().backward()
            assert stored.grad is not None and stored.grad[0, [1, 3]].tolist() == [0, 0]
            optimizer.step()
    torch.testing.assert_close(model.weight[0, [1, 3]], torch.tensor([0.9, 0.1]) * (1 - 0.1 * 0.2) ** 5)
    assert magnitude_masks(model, 0.5).keep["weight"].tolist() == [[False, True, True, False]]


def test_effective_masks_of_tied_weights_and_of_others() -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    tied[2].weight = tied[0].weight
    masks = Masks({"0.weight": torch.zeros(3, 3, dtype=torch.bool)})
    with masks.effective(tied):
        assert (tied[2].weight == 0).all() and len(list(tied.parameters())) == 1
    recurrent = nn.LSTM(2, 2)
    with pytest.raises(InputError, match="LSTM takes no effective masks"):
        magnitude_masks(recurrent, 0.5).effective(recurrent).__enter__()
    with pytest.raises(InputError, match="and the parameter is missing"):
        masks.effective(nn.Linear(3, 3)).__enter__()


def test_effective_masks_in_a_wrapper_for_several_processes(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = network()
        wrapped, masks = nn.parallel.DistributedDataParallel(model), magnitude_masks(model, 0.6)
        with masks.effective(model):
            wrapped(torch.randn(4, 1, 4, 4)).square().sum().backward()
        for name, mask in masks.keep.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None and (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()
    finally:
        torch.distributed.destroy_process_group()


def test_effective_masks_compile_for_each() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(x)
    for sparsity in (0.3, 0.8):
        with magnitude_masks(model, sparsity).effective(model):
            torch.testing.assert_close(compiled(x), model(x))
            assert any((layer.weight == 0).any() for layer in (model[0], model[2]))
    torch.testing.assert_close(compiled(x), model(x))


def test_a_sparse_file(tmp_path: Path) -> None:
    model = network().to(torch.bfloat16)
    masks = magnitude_masks(model, 0.75)
    masks.apply(model)
    save_sparse(model, masks, tmp_path / "sparse.safetensors")
    state, found = load_sparse(tmp_path / "sparse.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(
        torch.equal(value, model.state_dict()[name]) and value.dtype == model.state_dict()[name].dtype
        for name, value in state.items()
    )
    assert all(torch.equal(mask, masks.keep[name]) for name, mask in found.keep.items())
    wide = nn.Linear(1000, 100)
    save_sparse(wide, magnitude_masks(wide, 0.9), tmp_path / "wide.safetensors")
    assert (tmp_path / "wide.safetensors").stat().st_size < 1000 * 100 * (4 * 0.1 + 1 / 8) + 2000


def test_files_and_masks_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    save_sparse(network(), magnitude_masks(network(), 0.5), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_sparse(path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(InputError, match="expected 'polytask-sparse-1'"):
        load_sparse(path)
    with pytest.raises(InputError, match=r"mask of weight: \(2, 2\), and the parameter is \(1, 4\)"):
        Masks({"weight": torch.ones(2, 2, dtype=torch.bool)}).apply(nn.Linear(4, 1))
    with pytest.raises(InputError, match=r"sparsity 1\.5"):
        magnitude_masks(network(), 1.5)
