"""Learned coefficients: the oracles of AdaMerging, and theta and its gradient against the explicit sum."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from polytask.errors import InputError, TrainingError
from polytask.merge import coefficients as module
from polytask.merge.checkpoint import open_checkpoint
from polytask.merge.coefficients import Coefficients, Merged, entropy, learn, load_weights, rule_by_tensor, save_weights
from polytask.merge.merging import merge_checkpoints, merge_state_dicts
from polytask.merge.plan import make_plan
from polytask.merge.rules.ties import trim_and_elect

Vector = dict[str, Tensor]


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


class Normed(nn.Module):
    """Batch normalisation, dropout and an int buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))
        self.two = nn.Linear(6, 3)
        self.register_buffer("ids", torch.arange(4))
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)) * self.scale


class Tied(nn.Module):
    """An embedding whose weight is the output's too."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(x)))


def tuned(model: nn.Module, seed: int, size: float = 0.5) -> nn.Module:
    """A copy with every float tensor moved, variances kept positive."""
    generator = torch.Generator().manual_seed(seed)
    found = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in [*found.named_parameters(), *found.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) * size
                tensor.add_(noise.abs() if name.endswith("var") else noise)
    return found


def difference(one: nn.Module, base: nn.Module) -> Vector:
    """The task vector as the whole state dict, tied names and int entries with it."""
    start = base.state_dict()
    return {name: value - start[name] for name, value in one.state_dict().items()}


def several(model: nn.Module, count: int, size: float = 0.5) -> tuple[list[nn.Module], list[Vector]]:
    models = [tuned(model, seed, size) for seed in range(1, count + 1)]
    return models, [difference(one, model) for one in models]


def inputs(count: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


def entropy_of(merged: Merged, task: str, x: Tensor) -> Tensor:
    return entropy(merged(x))


def close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


def explicit(model: nn.Module, vectors: list[Vector], values: Tensor, columns: Mapping[str, int]) -> Vector:
    """Theta with the graph through the sum over task vectors."""
    return {
        name: base.detach() + sum(values[k, columns[name]] * vectors[k][name] for k in range(len(vectors)))
        for name, base in model.named_parameters()
    }


# --- theta ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["task", "tensor"])
def test_one_over_k_is_the_average(by: Any) -> None:
    model = network()
    models, vectors = several(model, 4)
    merged = Coefficients(model, vectors, by, start=1 / 4).merged()
    states = [one.state_dict() for one in models]
    close(merged, {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})


@given(count=st.integers(1, 4), scale=st.floats(-1, 1), by=st.sampled_from(["task", "tensor"]))
@settings(max_examples=20, deadline=None)
def test_a_constant_is_task_arithmetic(count: int, scale: float, by: Any) -> None:
    model = network()
    _, vectors = several(model, count)
    merged = Coefficients(model, vectors, by, start=scale, clamp=None).merged()
    start = model.state_dict()
    close(merged, {name: start[name] + scale * sum(vector[name] for vector in vectors) for name in start})


@pytest.mark.parametrize("by", ["task", "tensor"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_one_hot_is_that_fine_tune_whole_with_its_statistics(by: Any, k: int) -> None:
    model = Normed()
    models, vectors = several(model, 3)
    merged = Coefficients(model, vectors, by, start=[float(j == k) for j in range(3)]).merged()
    want = {name: value for name, value in models[k].state_dict().items() if value.is_floating_point()}
    close(merged, want, rtol=0, atol=5e-7)
    x = inputs(dtype=torch.float32)
    torch.testing.assert_close(functional_call(model.eval(), merged, (x,)), models[k].eval()(x))


def test_task_wise_and_tensor_wise_start_as_one_model_in_groups_of_their_own() -> None:
    model = network()
    _, vectors = several(model, 3)
    task, tensor = Coefficients(model, vectors, "task"), Coefficients(model, vectors, "tensor")
    assert task.groups == ("all",) and task.raw.shape == (3, 1) and task.raw[0, 0].item() == 0.3
    assert tensor.groups == tuple(name for name, _ in model.named_parameters()) and tensor.raw.shape == (3, 6)
    close(task.merged(), tensor.merged(), rtol=0, atol=0)


def test_blocks_are_named_by_the_users_function() -> None:
    model = network()
    _, vectors = several(model, 2)
    coefficients = Coefficients(model, vectors, by=lambda name: "first" if name.startswith("0.") else "rest")
    assert coefficients.groups == ("first", "rest")
    with torch.no_grad():
        coefficients.raw.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    merged, start = coefficients.merged(), model.state_dict()
    close(merged, {name: start[name] + vectors[0 if name.startswith("0.") else 1][name] for name in start})


def test_the_clamp_is_taken_in_the_forward_only() -> None:
    model = network()
    _, vectors = several(model, 2)
    coefficients = Coefficients(model, vectors, "task")
    with torch.no_grad():
        coefficients.raw.copy_(torch.tensor([[-0.5], [1.5]]))
    assert coefficients().tolist() == [[0.0], [1.0]]
    close(coefficients.merged(), {name: base + vectors[1][name] for name, base in model.state_dict().items()})
    assert coefficients.raw.tolist() == [[-0.5], [1.5]]


def test_a_coordinate_that_no_vector_moves_stays_at_the_base() -> None:
    model = network()
    _, vectors = several(model, 3)
    gone = {
        name: torch.rand(value.shape, generator=torch.Generator().manual_seed(3)) < 0.5 for name, value in vectors[0].items()
    }
    trimmed = [{name: value.masked_fill(gone[name], 0) for name, value in vector.items()} for vector in vectors]
    coefficients = Coefficients(model, trimmed, clamp=None)
    learn(coefficients, {"a": [inputs()]}, entropy_of, steps=5, lr=0.5)
    start = model.state_dict()
    for name, value in coefficients.merged().items():
        assert torch.equal(value[gone[name]], start[name][gone[name]])
        assert torch.equal(value, start[name]) == bool(gone[name].all())
    assert 0 < gone["0.weight"].sum() < 35


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    model = network()
    _, vectors = several(model, 2)
    gradient = {name: torch.randn_like(value) for name, value in model.named_parameters()}

    def both() -> tuple[Vector, Tensor]:
        coefficients = Coefficients(model, vectors)
        coefficients.accumulate(gradient)
        assert coefficients.raw.grad is not None
        return coefficients.merged(), coefficients.raw.grad

    merged, slope = both()
    monkeypatch.setattr(module, "PIECE", piece)
    again, slope_again = both()
    close(merged, again, rtol=0, atol=0)
    torch.testing.assert_close(slope, slope_again)


# --- the gradient --------------------------------------------------------------------------------------------------------


BY: dict[str, Any] = {"task": "task", "tensor": "tensor", "block": lambda name: name.split(".")[0]}


@pytest.mark.parametrize("clamp", [(0.0, 1.0), (0.2, 0.4), None], ids=str)
@pytest.mark.parametrize("by", BY)
def test_gradient_is_that_of_the_explicit_sum_and_of_finite_differences(by: str, clamp: tuple[float, float] | None) -> None:
    model = network()
    _, vectors = several(model, 3)
    coefficients = Coefficients(model, vectors, BY[by], clamp=clamp)
    with torch.no_grad():  # some inside, some outside of every range
        coefficients.raw.copy_(torch.rand(coefficients.raw.shape, generator=torch.Generator().manual_seed(5)) * 1.6 - 0.3)
    batches = {"a": inputs(8), "b": inputs(5) * 2}
    losses = coefficients.backward(batches, entropy_of)

    raw = coefficients.raw.detach().clone().requires_grad_()
    columns = coefficients.columns

    def total(raw: Tensor) -> Tensor:
        theta = explicit(model, vectors, raw if clamp is None else raw.clamp(*clamp), columns)
        return sum(entropy(functional_call(model, theta, (x,))) for x in batches.values())  # type: ignore[return-value]

    total(raw).backward()
    assert raw.grad is not None
    assert coefficients.raw.grad is not None
    torch.testing.assert_close(coefficients.raw.grad, raw.grad)
    torch.testing.assert_close(torch.tensor(sum(losses.values()), dtype=torch.float64), total(raw).detach())
    step = 1e-6
    with torch.no_grad():
        for place in itertools.product(*map(range, raw.shape)):
            up, down = raw.clone(), raw.clone()
            up[place] += step
            down[place] -= step
            slope = (total(up) - total(down)) / (2 * step)
            torch.testing.assert_close(coefficients.raw.grad[place], slope, rtol=1e-5, atol=1e-8)
    if clamp is not None:
        outside = (raw < clamp[0]) | (raw > clamp[1])
        assert outside.any()
        assert (coefficients.raw.grad[outside] == 0).all()
        assert (coefficients.raw.grad[~outside] != 0).all()


def test_of_one_vector_it_is_the_directional_derivative() -> None:
    model = network()
    _, [vector] = several(model, 1)
    coefficients = Coefficients(model, [vector], "task", start=0.4)
    coefficients.backward({"a": inputs()}, entropy_of)
    start = model.state_dict()
    theta = {name: start[name] + 0.4 * vector[name] for name in start}
    _, slope = torch.func.jvp(lambda theta: entropy(functional_call(model, theta, (inputs(),))), (theta,), (vector,))
    assert coefficients.raw.grad is not None
    torch.testing.assert_close(coefficients.raw.grad, slope.reshape(1, 1))


def test_gradients_add_up_and_a_missing_one_counts_as_zero() -> None:
    model = network()
    _, vectors = several(model, 2)
    gradient = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    coefficients = Coefficients(model, vectors)
    coefficients.accumulate(gradient)
    assert coefficients.raw.grad is not None
    want = torch.stack([torch.stack([(gradient[name] * vector[name]).sum() for name in gradient]) for vector in vectors])
    torch.testing.assert_close(coefficients.raw.grad, want)
    coefficients.accumulate({"0.weight": gradient["0.weight"], "another": torch.ones(3)})
    want[:, coefficients.groups.index("0.weight")] *= 2
    torch.testing.assert_close(coefficients.raw.grad, want)
    with pytest.raises(InputError, match=r"gradient: tensor '0.weight': shape \(3,\), expected \(7, 5\)"):
        coefficients.accumulate({"0.weight": torch.ones(3)})


def test_only_the_coefficients_get_gradients() -> None:
    model, heads = network(), nn.Linear(3, 3).double()
    model[0].weight.grad = torch.ones(7, 5, dtype=torch.float64)
    coefficients = Coefficients(model, several(model, 2)[1])
    before = copy.deepcopy(model.state_dict())
    losses = learn(coefficients, {"a": [inputs()]}, lambda merged, _, x: entropy(heads(merged(x))), steps=3, lr=0.1)
    assert len(losses) == 3 and coefficients.raw.grad is None
    close(model.state_dict(), before, rtol=0, atol=0)
    assert (model[0].weight.grad == 1).all()
    assert all(p.grad is None for p in [*heads.parameters(), *list(model.parameters())[1:]])
    assert [name for name, _ in coefficients.named_parameters()] == ["raw"]


def test_each_tasks_graph_is_freed_before_the_next_begins() -> None:
    """Count what autograd keeps for backward: it must not grow with the number of tasks."""
    model = network()
    coefficients = Coefficients(model, several(model, 1)[1], "task")
    alive = 0
    most: list[int] = []

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal alive
            self.tensor = tensor
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def loss(merged: Merged, task: str, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            value = entropy(merged(x))
        most.append(alive)
        return value

    coefficients.backward({str(k): inputs() for k in range(6)}, loss)
    assert most[0] > 0
    assert most == most[:1] * 6


# --- what models and vectors may be --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["embed.weight", "out.weight", "both"])
def test_a_tied_weight_counts_once_under_any_of_its_names(name: str) -> None:
    model = Tied().double()
    whole = difference(tuned(model, 1), model)
    assert set(whole) == {"embed.weight", "out.weight"}
    vector = whole if name == "both" else {name: whole[name]}
    coefficients = Coefficients(model, [vector], start=0.5)
    x = torch.tensor([0, 1, 2, 5, 5])
    coefficients.backward({"a": x}, entropy_of)
    assert coefficients.groups == ("embed.weight",)

    untied = Tied(tied=False).double()
    raw = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    theta = model.embed.weight.detach() + raw * whole["embed.weight"]
    entropy(functional_call(untied, {"embed.weight": theta, "out.weight": theta}, (x,))).backward()
    assert raw.grad is not None and coefficients.raw.grad is not None
    torch.testing.assert_close(coefficients.raw.grad, raw.grad.reshape(1, 1))

    made = copy.deepcopy(model)
    made.load_state_dict(coefficients.merged(), strict=False)
    assert made.out.weight is made.embed.weight
    torch.testing.assert_close(made.out.weight.detach(), theta.detach())


def test_two_values_for_a_tied_weight_are_refused() -> None:
    model = Tied()
    vector = difference(tuned(model, 1), model)
    vector["out.weight"] = vector["out.weight"] + 1
    with pytest.raises(InputError, match=r"vector 0: tensor 'out.weight': differs from 'embed.weight'"):
        Coefficients(model, [vector])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_vectors_in_another_dtype_act_as_their_values_in_the_models(dtype: torch.dtype) -> None:
    model = network(torch.float32)
    low = [{name: value.to(dtype) for name, value in vector.items()} for vector in several(model, 3)[1]]
    same = [{name: value.float() for name, value in vector.items()} for vector in low]
    one, other = Coefficients(model, low), Coefficients(model, same)
    close(one.merged(), other.merged(), rtol=0, atol=0)
    for coefficients in (one, other):
        coefficients.backward({"a": inputs(dtype=torch.float32)}, entropy_of)
    assert one.raw.grad is not None
    assert torch.equal(one.raw.grad, other.raw.grad)  # type: ignore[arg-type]


def test_a_model_in_half_precision_is_summed_in_single_and_rounded_once() -> None:
    model = network(torch.bfloat16)
    vectors = [{name: torch.randn(value.shape) * 1e-3 for name, value in model.named_parameters()} for _ in range(8)]
    coefficients = Coefficients(model, vectors)
    want = {name: base.float() + 0.3 * sum(vector[name] for vector in vectors) for name, base in model.state_dict().items()}
    close(coefficients.merged(), {name: value.to(torch.bfloat16) for name, value in want.items()}, rtol=0.004, atol=0)
    assert coefficients.raw.dtype == torch.float32
    learn(coefficients, {"a": [inputs(dtype=torch.bfloat16)]}, entropy_of, steps=2)
    assert (coefficients.raw != 0.3).all()


def test_vectors_may_be_mapped_files(tmp_path: Path) -> None:
    model = network(torch.float32)
    _, vectors = several(model, 2)
    for k, vector in enumerate(vectors):
        save_file(vector, tmp_path / f"{k}.safetensors")
    mapped = [load_file(tmp_path / f"{k}.safetensors") for k in range(2)]
    close(Coefficients(model, mapped).merged(), Coefficients(model, vectors).merged(), rtol=0, atol=0)


def test_a_vector_that_is_made_when_asked_for_is_held_one_tensor_at_a_time() -> None:
    model = network(torch.float32)
    _, vectors = several(model, 2)
    alive = 0
    most = 0

    class Lazy(Mapping[str, Tensor]):
        def __init__(self, vector: Vector) -> None:
            self.vector = vector

        def __getitem__(self, name: str) -> Tensor:
            nonlocal alive, most
            made = self.vector[name].clone().as_subclass(Counted)
            alive += 1
            most = max(most, alive)
            return made

        def __iter__(self) -> Iterator[str]:
            return iter(self.vector)

        def __len__(self) -> int:
            return len(self.vector)

    class Counted(Tensor):
        __torch_function__ = torch._C._disabled_torch_function_impl

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    coefficients = Coefficients(model, [Lazy(vector) for vector in vectors])
    close(coefficients.merged(), Coefficients(model, vectors).merged(), rtol=0, atol=0)
    coefficients.backward({"a": inputs(dtype=torch.float32)}, entropy_of)
    assert alive == 0
    assert most <= 2  # the one that is being made, and the one before it, whose name is bound until then


def test_partial_vectors_leave_the_rest_and_have_no_coefficient_there() -> None:
    model = network()
    _, vectors = several(model, 2)
    partial = [{"0.weight": vectors[0]["0.weight"]}, {"0.weight": vectors[1]["0.weight"], "2.bias": vectors[1]["2.bias"]}]
    coefficients = Coefficients(model, partial)
    assert coefficients.groups == ("0.weight", "2.bias")
    filled = [{name: part.get(name, torch.zeros_like(value)) for name, value in vectors[0].items()} for part in partial]
    whole = Coefficients(model, filled)
    close(coefficients.merged(), {name: value for name, value in whole.merged().items() if name in coefficients.groups})
    for one in (coefficients, whole):
        one.backward({"a": inputs()}, entropy_of)
    assert coefficients.raw.grad is not None and whole.raw.grad is not None
    torch.testing.assert_close(coefficients.raw.grad, whole.raw.grad[:, [whole.groups.index(name) for name in partial[1]]])
    assert coefficients.raw.grad[0, 1] == 0


def test_names_are_matched_not_positions() -> None:
    model = Normed()
    _, vectors = several(model, 2)
    turned = [dict(reversed(vector.items())) for vector in vectors]
    close(Coefficients(model, turned).merged(), Coefficients(model, vectors).merged(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"0.wieght": torch.ones(7, 5)},
            r"vector 1: tensor '0.wieght': the model has no such tensor, .* such as '0.weight'",
        ),
        ({"0.weight": torch.ones(5, 7)}, r"vector 1: tensor '0.weight': shape \(5, 7\), expected \(7, 5\)"),
        (
            {"0.weight": torch.ones(7, 5, dtype=torch.int64)},
            r"'0.weight': torch.int64, expected a real floating-point dtype",
        ),
        (
            {"0.weight": torch.ones(7, 5, dtype=torch.complex64)},
            r"'0.weight': torch.complex64, expected a real floating-point",
        ),
        ({"0.weight": torch.ones(7, 5).to_sparse()}, r"'0.weight': torch.sparse_coo, expected a dense torch.Tensor"),
        ({"0.weight": [1.0]}, r"'0.weight': list, expected a dense torch.Tensor"),
        ({"ids": torch.ones(4)}, r"'ids': torch.float32, but the model's is torch.int64, which cannot be merged"),
    ],
    ids=["name", "shape", "int", "complex", "sparse", "list", "buffer"],
)
def test_a_vector_that_does_not_fit_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    model = network()
    model.register_buffer("ids", torch.arange(4))
    _, [one, other] = several(model, 2)
    with pytest.raises(InputError, match=message) as caught:
        Coefficients(model, [one, other | change])
    assert "\n" not in str(caught.value)


def test_entries_that_are_not_floating_point_are_skipped_known_or_not() -> None:
    model = Normed()
    vector = difference(tuned(model, 1), model) | {
        "old.position_ids": torch.arange(3),
        "ids": torch.ones(4, dtype=torch.int64),
    }
    coefficients = Coefficients(model, [vector], start=1.0)
    assert not any("ids" in name or "num_batches" in name for name in coefficients.merged())
    learn(coefficients, {"a": [inputs(dtype=torch.float32)]}, entropy_of, steps=2)
    assert model.ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "layer"}, "by 'layer': expected 'task', 'tensor' or a function"),
        ({"by": lambda name: 3}, "by: 3 for tensor '0.weight', expected the name of a group"),
        ({"start": 1.5}, r"start 1.5: expected a finite number from 0.0 to 1.0"),
        ({"start": math.nan, "clamp": None}, "start nan: expected a finite number"),
        ({"start": [0.1, 0.2, 0.3]}, "start: 3 values, expected one, or one for each of the 2 vectors"),
        ({"clamp": (1.0, 0.0)}, r"clamp \(1.0, 0.0\): expected \(low, high\)"),
        ({"vectors": []}, "vectors: none, expected at least one task vector"),
        ({"vectors": [{}]}, "vectors: none has a floating-point tensor for a parameter"),
    ],
    ids=["by", "group", "start", "nan", "starts", "clamp", "none", "empty"],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    model = network()
    with pytest.raises(InputError, match=message):
        Coefficients(**{"model": model, "vectors": several(model, 2)[1], **settings})


# --- buffers and modes ---------------------------------------------------------------------------------------------------


def test_statistics_are_averaged_and_never_extrapolated() -> None:
    """Task arithmetic on variances would give 4 + 5 * 0.9 * (1 - 4) < 0 here."""
    model = Normed()
    model.one[1].running_var.fill_(4.0)
    models = [tuned(model, seed) for seed in range(5)]
    for k, one in enumerate(models):
        one.one[1].running_var.fill_(1.0 + k)
    coefficients = Coefficients(model, [difference(one, model) for one in models], start=0.9)
    torch.testing.assert_close(coefficients.merged()["one.1.running_var"], torch.full((6,), 3.0))
    with torch.no_grad():
        coefficients.raw.fill_(0.1)
    torch.testing.assert_close(coefficients.merged()["one.1.running_var"], torch.full((6,), 0.5 * 4 + 0.5 * 3.0))


@given(values=st.lists(st.floats(-3, 3), min_size=15, max_size=15))
@settings(max_examples=30, deadline=None)
def test_variances_stay_within_the_range_of_their_sources(values: list[float]) -> None:
    model = Normed()
    models, vectors = several(model, 3)
    coefficients = Coefficients(model, vectors, by=lambda name: ".".join(name.split(".")[:2]), clamp=None)
    with torch.no_grad():
        coefficients.raw.copy_(torch.tensor(values)[: coefficients.raw.numel()].reshape(coefficients.raw.shape))
    found = coefficients.merged()["one.1.running_var"]
    sources = torch.stack([one.one[1].running_var for one in [model, *models]])
    assert (found >= sources.amin(0) - 1e-5).all() and (found <= sources.amax(0) + 1e-5).all()


def test_a_buffer_follows_the_parameters_of_its_own_module_or_all_groups() -> None:
    model = Normed()
    models, vectors = several(model, 2)
    coefficients = Coefficients(model, vectors, start=0.0)
    with torch.no_grad():
        for name in ("one.1.weight", "one.1.bias"):
            coefficients.raw[1, coefficients.groups.index(name)] = 1.0
    merged = coefficients.merged()
    torch.testing.assert_close(merged["one.1.running_mean"], models[1].one[1].running_mean)
    share = 2 / len(coefficients.groups)
    torch.testing.assert_close(merged["scale"], model.scale + share * vectors[1]["scale"])


@pytest.mark.parametrize("fail", [False, True])
def test_eval_mode_while_learning_and_each_modules_own_mode_after(fail: bool) -> None:
    model = Normed().train()
    model.one[1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [one.training for one in model.modules()]
    coefficients = Coefficients(model, several(model, 2)[1])
    x = inputs(dtype=torch.float32)
    seen = []

    def loss(merged: Merged, task: str, x: Tensor) -> Tensor:
        seen.append(any(one.training for one in model.modules()))
        assert torch.equal(merged(x), merged(x))  # no dropout
        if fail:
            raise RuntimeError("out of luck")
        return entropy(merged(x))

    if fail:
        with pytest.raises(RuntimeError, match="out of luck"):
            learn(coefficients, {"a": [x]}, loss, steps=3)
    else:
        learn(coefficients, {"a": [x]}, loss, steps=3)
    assert not any(seen)
    assert [one.training for one in model.modules()] == modes
    close(model.state_dict(), before, rtol=0, atol=0)


# --- entropy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 397])
def test_uniform_logits_have_entropy_log_c_and_no_gradient(classes: int) -> None:
    logits = torch.full((4, classes), 3.0, dtype=torch.float64, requires_grad=True)
    value = entropy(logits)
    value.backward()
    assert value.item() == pytest.approx(math.log(classes), abs=1e-12)
    assert logits.grad is not None and logits.grad.abs().max() < 1e-15


@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.01, 30))
@settings(max_examples=40, deadline=None)
def test_entropy_is_that_of_the_categorical_distribution(count: int, classes: int, scale: float) -> None:
    logits = torch.randn(count, classes, dtype=torch.float64) * scale
    torch.testing.assert_close(entropy(logits), torch.distributions.Categorical(logits=logits).entropy().mean())


def test_entropy_of_tokens_counts_the_positions_of_the_mask_only() -> None:
    logits = torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    want = entropy(torch.stack([logits[0, 0], logits[0, 1], logits[1, 0]]))
    logits[mask == 0] = math.nan
    logits.requires_grad_()
    for one in (mask, mask.bool()):
        value = entropy(logits, one)
        torch.testing.assert_close(value, want)
        value.backward()
        assert logits.grad is not None and logits.grad.isfinite().all() and (logits.grad[mask == 0] == 0).all()
    assert entropy(logits, torch.zeros(2, 3)).item() == 0


def test_entropy_of_sure_and_ruled_out_classes_has_a_finite_gradient() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0], [1e4, 0.0, -1e4]], requires_grad=True)
    value = entropy(logits)
    value.backward()
    assert value.item() == pytest.approx(math.log(2) / 2)
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_entropy_of_half_precision_is_taken_in_single() -> None:
    logits = torch.randn(4, 1000).half()
    assert entropy(logits).dtype == torch.float32
    torch.testing.assert_close(entropy(logits), entropy(logits.double()).float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor(1.0),), r"logits: shape \(\), expected \(..., classes\)"),
        ((torch.ones(2, 3, 4), torch.ones(2, 4)), r"mask: shape \(2, 4\), expected \(2, 3\)"),
        ((torch.ones(2, 3), None, 1.5), "marginal_entropy_floor 1.5: expected a share from 0 to 1, or None"),
    ],
)
def test_entropy_refuses_what_has_no_meaning(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        entropy(*arguments)


def test_below_the_floor_a_batch_has_its_entropy_but_no_gradient() -> None:
    collapsed = torch.tensor([[2.0, 0.0, 0.0], [2.5, 0.0, 0.3], [3.0, 0.1, 0.0]], requires_grad=True)
    p = collapsed.detach().softmax(-1).mean(0)
    share = float(-(p * p.log()).sum()) / math.log(3)
    for floor, moves in [(share - 0.01, True), (share + 0.01, False), (0.0, True)]:
        collapsed.grad = None
        value = entropy(collapsed, marginal_entropy_floor=floor)
        torch.testing.assert_close(value, entropy(collapsed))
        value.backward()
        assert collapsed.grad is not None
        assert bool((collapsed.grad != 0).any()) == moves
    spread = (8 * torch.eye(3)).requires_grad_()  # sure of each, and of all three: nothing has collapsed
    entropy(spread, marginal_entropy_floor=0.9).backward()
    assert spread.grad is not None and (spread.grad != 0).any()
    one = torch.randn(1, 400, requires_grad=True)  # a single prediction cannot collapse
    entropy(one, marginal_entropy_floor=1.0).backward()
    assert one.grad is not None and (one.grad != 0).any()


def test_the_floor_stops_a_collapse_while_learning() -> None:
    """The task vector drives every input to class 0, and the entropy with it."""
    model = nn.Linear(5, 3).double()
    vector = {"bias": torch.tensor([10.0, 0.0, 0.0], dtype=torch.float64)}

    def marginal(floor: float | None) -> float:
        coefficients = Coefficients(model, [vector], start=0.1)
        learn(
            coefficients,
            {"a": [inputs(64)]},
            lambda merged, _, x: entropy(merged(x), marginal_entropy_floor=floor),
            steps=400,
            lr=3e-3,
        )
        p = Merged(model, coefficients.merged())(inputs(64)).detach().softmax(-1).mean(0)
        return float(-(p * p.log()).sum()) / math.log(3)

    assert marginal(None) < 0.05
    assert marginal(0.5) > 0.4


# --- learning ------------------------------------------------------------------------------------------------------------


def test_it_is_adam_on_the_sum_of_the_tasks() -> None:
    model = network()
    _, vectors = several(model, 2)
    coefficients = Coefficients(model, vectors)
    xs = {"a": [inputs(4), inputs(6) * 2], "b": [inputs(3)]}
    history = learn(coefficients, xs, entropy_of, steps=5, lr=0.05, betas=(0.8, 0.99))

    raw = torch.full_like(coefficients.raw, 0.3).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.05, betas=(0.8, 0.99))
    for step in range(5):
        optimizer.zero_grad()
        theta = explicit(model, vectors, raw.clamp(0, 1), coefficients.columns)
        losses = {task: entropy(functional_call(model, theta, (found[step % len(found)],))) for task, found in xs.items()}
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        assert history[step] == pytest.approx({task: loss.item() for task, loss in losses.items()})
    torch.testing.assert_close(coefficients.raw.detach(), raw.detach())


def test_a_state_dict_goes_round_and_learning_goes_on() -> None:
    model = network()
    _, vectors = several(model, 2)
    first = Coefficients(model, vectors)
    learn(first, {"a": [inputs()]}, entropy_of, steps=3, lr=0.1)
    state = first.state_dict()
    assert list(state) == ["raw"]
    second = Coefficients(model, vectors)
    second.load_state_dict(state)
    close(second.merged(), first.merged(), rtol=0, atol=0)
    for coefficients in (first, second):
        learn(coefficients, {"a": [inputs()]}, entropy_of, steps=3, lr=0.1)
    assert torch.equal(first.raw, second.raw)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Coefficients(model, vectors, "task").load_state_dict(state)


def test_a_users_loss_sees_task_and_batch_and_the_merged_tensors() -> None:
    model = network()
    _, vectors = several(model, 2)
    coefficients = Coefficients(model, vectors, "task")
    seen = []

    def loss(merged: Merged, task: str, batch: dict[str, Tensor]) -> Tensor:
        seen.append((task, batch["n"].item(), set(merged.theta) == set(model.state_dict())))
        return merged(batch["x"]).square().mean() + 1e-3 * merged.theta["0.bias"].square().sum()

    batches = {
        "a": [{"x": inputs(), "n": torch.tensor(n)} for n in range(3)],
        "b": itertools.repeat({"x": inputs(), "n": torch.tensor(9)}),
    }
    history = learn(coefficients, batches, loss, steps=4, lr=0.05)
    assert seen == [step for n in (0, 1, 2, 0) for step in (("a", n, True), ("b", 9, True))]
    assert sum(history[-1].values()) < sum(history[0].values())


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda merged, task, x: merged(x), InputError, r"task 'a': loss of shape \(8, 3\), expected a scalar tensor"),
        (lambda merged, task, x: 1.0, InputError, "task 'a': loss of float, expected a scalar tensor"),
        (lambda merged, task, x: merged(x).detach().mean(), InputError, "task 'a': its loss has no gradient"),
        (lambda merged, task, x: merged(x).mean() / 0, TrainingError, r"step 0: task 'a': loss -?(inf|nan)"),
        (
            lambda merged, task, x: (merged(x) * 0).abs().sqrt().sum(),
            TrainingError,
            "step 0: vector 0, group '0.weight': the grad",
        ),
    ],
    ids=["shape", "float", "detached", "infinite", "gradient"],
)
def test_a_loss_that_cannot_be_learned_from_stops_the_run(loss: Callable[..., Any], error: type, message: str) -> None:
    model = network()
    coefficients = Coefficients(model, several(model, 2)[1])
    with pytest.raises(error, match=message):
        learn(coefficients, {"a": [inputs()]}, loss, steps=2)
    assert (coefficients.raw == 0.3).all()


@pytest.mark.parametrize("before", [None, 2.0])
def test_a_failed_backward_leaves_the_gradient_as_it_was(before: float | None) -> None:
    model = network()
    coefficients = Coefficients(model, several(model, 2)[1])
    coefficients.raw.grad = None if before is None else torch.full_like(coefficients.raw, before)
    with pytest.raises(TrainingError, match="the gradient of its coefficient is not finite"):
        coefficients.backward({"a": inputs()}, lambda merged, task, x: (merged(x) * 0).abs().sqrt().sum())
    with pytest.raises(TrainingError, match="task 'b': loss nan"):
        coefficients.backward({"a": inputs(), "b": inputs() * math.nan}, entropy_of)
    grad = coefficients.raw.grad
    assert grad is None if before is None else (grad is not None and (grad == before).all())


def test_a_failure_later_keeps_the_last_good_coefficients() -> None:
    model = network()
    coefficients = Coefficients(model, several(model, 2)[1])
    good = copy.deepcopy(coefficients)
    learn(good, {"a": [inputs()]}, entropy_of, steps=2)
    with pytest.raises(TrainingError, match="step 2: task 'a': loss nan"):
        learn(coefficients, {"a": [inputs(), inputs(), inputs() * math.nan]}, entropy_of, steps=9)
    assert torch.equal(coefficients.raw, good.raw)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": {}}, "batches: no tasks"),
        ({"batches": {"a": []}}, "task 'a': no batches left"),
        ({"batches": {"a": iter([torch.ones(2, 5).double()])}}, "task 'a': no batches left"),
        ({"steps": 0}, "steps 0: expected at least 1"),
        ({"lr": 0.0}, "lr 0.0: expected a finite number > 0"),
    ],
    ids=["no tasks", "empty", "generator", "steps", "lr"],
)
def test_learn_refuses_what_it_cannot_run(settings: dict[str, Any], message: str) -> None:
    model = network()
    coefficients = Coefficients(model, several(model, 1)[1])
    with pytest.raises(InputError, match=message):
        learn(coefficients, **{"batches": {"a": [inputs()]}, "loss": entropy_of, "steps": 3, **settings})


def test_autocast_inside_the_loss_or_around_the_run() -> None:
    model = network(torch.float32)
    _, vectors = several(model, 2)
    x = inputs(dtype=torch.float32)
    found = []
    for inside, around in [(False, False), (True, False), (False, True)]:
        coefficients = Coefficients(model, vectors)

        def loss(merged: Merged, task: str, x: Tensor, inside: bool = inside) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=inside or torch.is_autocast_enabled("cpu")):
                logits = merged(x)
            assert logits.dtype == (torch.bfloat16 if torch.is_autocast_enabled("cpu") or inside else torch.float32)
            return entropy(logits)

        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            history = learn(coefficients, {"a": [x]}, loss, steps=10, lr=0.02)
            coefficients.backward({"a": x}, loss)
        assert coefficients.raw.grad is not None and coefficients.raw.grad.dtype == torch.float32
        found.append((coefficients.raw.detach(), coefficients.raw.grad, history[-1]["a"]))
    for raw, grad, loss_at_end in found[1:]:
        torch.testing.assert_close(grad, found[0][1], rtol=0.1, atol=0.02)
        torch.testing.assert_close(raw, found[0][0], rtol=0.1, atol=0.05)
        assert loss_at_end == pytest.approx(found[0][2], abs=0.02)
    torch.testing.assert_close(found[1][0], found[2][0])


def test_products_under_autocast_are_exact() -> None:
    model = network(torch.float32)
    _, vectors = several(model, 2)
    gradient = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    found = []
    for enabled in (False, True):
        coefficients = Coefficients(model, vectors)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            coefficients.accumulate(gradient)
            found.append((coefficients.merged(), coefficients.raw.grad))
    close(found[0][0], found[1][0], rtol=0, atol=0)
    assert torch.equal(found[0][1], found[1][1])  # type: ignore[arg-type]


def test_a_transformers_model_with_tied_weights_and_dict_batches() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=23, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double()
    assert model.lm_head.weight is model.transformer.wte.weight
    models, vectors = several(model, 2, 0.3)
    ids = torch.randint(0, 23, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}

    def loss(merged: Merged, task: str, batch: dict[str, Tensor]) -> Tensor:
        return entropy(merged(**batch).logits, batch["attention_mask"])

    coefficients = Coefficients(model, vectors, by=lambda name: ".".join(name.split(".")[:3]))
    assert "transformer.h.1" in coefficients.groups
    coefficients.backward({"a": batch}, loss)
    raw = torch.full_like(coefficients.raw, 0.3).requires_grad_()
    theta = explicit(model, vectors, raw, coefficients.columns)
    entropy(functional_call(model.eval(), theta, (), batch, tie_weights=True).logits, mask).backward()
    assert coefficients.raw.grad is not None and raw.grad is not None
    torch.testing.assert_close(coefficients.raw.grad, raw.grad)
    one = copy.deepcopy(model)
    one.load_state_dict(Coefficients(model, vectors, start=[0.0, 1.0]).merged(), strict=False)
    torch.testing.assert_close(one(**batch).logits, models[1].eval()(**batch).logits)


# --- on disk -------------------------------------------------------------------------------------------------------------


def written(folder: Path, models: Mapping[str, nn.Module]) -> dict[str, Path]:
    """Checkpoints with all tensors of each model, a tied weight under its first name."""
    paths = {}
    for name, model in models.items():
        tensors = {key: value.detach().clone() for key, value in module._tensors(model)}
        paths[name] = folder / f"{name}.safetensors"
        save_file(tensors, paths[name])
    return paths


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("make", [Normed, Tied, lambda: network(torch.float32)], ids=["normed", "tied", "network"])
def test_the_folder_on_disk_is_the_merged_model(make: Callable[[], nn.Module], by: str, tmp_path: Path) -> None:
    """Learned, saved, loaded, and merged by the engine: parameters, statistics and whole numbers are those in memory."""
    torch.manual_seed(0)
    model = make()
    models, vectors = several(model, 3, 0.1)
    coefficients = Coefficients(model, vectors, BY[by])
    x = torch.tensor([0, 1, 2, 5]) if isinstance(model, Tied) else inputs(dtype=torch.float32)
    learn(coefficients, {"a": [x]}, entropy_of, steps=20, lr=0.02)
    with torch.no_grad():
        coefficients.raw[0, 0] = -0.2  # outside of the clamp

    save_weights(tmp_path / "learned.json", coefficients.weights())
    paths = written(tmp_path, {"base": model} | {f"model{k}": one for k, one in enumerate(models)})
    base, *rest = (open_checkpoint(path) for path in paths.values())
    rule = rule_by_tensor(load_weights(tmp_path / "learned.json"))
    merge_checkpoints(rule, make_plan(rest, base), tmp_path / "out", about="learned")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == dict(module._tensors(model)).keys()
    want = coefficients.merged()
    for name, tensor in module._tensors(model):
        torch.testing.assert_close(found[name], want.get(name, tensor.detach()), rtol=1e-6, atol=1e-6)


def test_weights_have_all_names_and_zeros_where_no_vector_moves() -> None:
    model = Tied()
    vector = difference(tuned(model, 1), model)
    weights = Coefficients(model, [vector, vector], start=[0.25, 0.5]).weights()
    assert weights == {"embed.weight": [0.25, 0.5], "out.weight": [0.25, 0.5]}
    net = network()
    _, vectors = several(net, 2)
    partial = Coefficients(net, [{"0.bias": one["0.bias"]} for one in vectors], start=0.5)
    assert partial.weights() == {name: [0.5 * (name == "0.bias")] * 2 for name in net.state_dict()}
    models = [one.state_dict() for one in several(net, 2)[0]]
    found = merge_state_dicts(rule_by_tensor(partial.weights()), models, net.state_dict(), torch.float64)
    close(found, net.state_dict() | partial.merged())


def test_weights_that_do_not_fit_the_checkpoints() -> None:
    model = network()
    models, vectors = several(model, 2)
    rule = rule_by_tensor(Coefficients(model, vectors).weights())
    states, base = [one.state_dict() for one in models], model.state_dict()
    with pytest.raises(InputError, match=r"'encoder\.0\.bias' has no weights, expected a name such as '0\.bias'"):
        rule("encoder.0.bias")
    with pytest.raises(InputError, match="weight has 2 numbers, expected one for each of 1 models"):
        merge_state_dicts(rule, states[:1], base)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no weights by tensor, expected an object with format 'polytask coefficients 1'"),
        ('{"format": "polytask coefficients 1"}', "no weights by tensor"),
        ('{"format": "other", "weights": {}}', "no weights by tensor"),
        ('{"format": "polytask coefficients 1", "weights": {"a": 0.3}}', "tensor 'a': 0.3, expected a list of finite"),
        ('{"format": "polytask coefficients 1", "weights": {"a": ["x"]}}', r"tensor 'a': \['x'\], expected a list"),
        ('{"format": "polytask coefficients 1", "weights": {"a": [NaN]}}', r"tensor 'a': \[nan\], expected a list"),
        ('{"format": "polytask coefficients 1", "weights": {"a": [1], "b": [1, 2]}}', "tensor 'b': 2 numbers, expected 1"),
        ('{"format"', "line 1: not valid JSON"),
    ],
)
def test_a_file_that_holds_no_weights_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_weights(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


# --- a small real problem ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, nn.ModuleDict, list[Vector], dict[str, tuple[Tensor, Tensor]]]:
    """An encoder and frozen heads from a short joint training, fine-tuned to digits as they are, turned and mirrored."""
    x, y = (torch.from_numpy(found) for found in load_digits(return_X_y=True))
    image = (x.float() / 16).reshape(-1, 8, 8)
    views = {"as is": image, "turned": image.rot90(1, (1, 2)), "mirrored": 1 - image.flip(2)}
    tasks = {task: (view.reshape(-1, 64), y) for task, view in views.items()}
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 32))
    heads = nn.ModuleDict({task: nn.Linear(32, 10) for task in tasks})

    def train(model: nn.Module, chosen: list[str], rows: slice, epochs: int, parameters: list[nn.Parameter]) -> None:
        optimizer = torch.optim.AdamW(parameters, lr=3e-3)
        for _ in range(epochs):
            optimizer.zero_grad()
            sum(cross_entropy(heads[task](model(tasks[task][0][rows])), tasks[task][1][rows]) for task in chosen).backward()
            optimizer.step()

    train(encoder, list(tasks), slice(0, 60), 40, [*encoder.parameters(), *heads.parameters()])
    heads.requires_grad_(False)
    vectors = []
    for task in tasks:
        one = copy.deepcopy(encoder)
        train(one, [task], slice(0, 900), 60, list(one.parameters()))
        vectors.append(difference(one, encoder))
    return encoder, heads, vectors, {task: (x[900:], y[900:]) for task, (x, y) in tasks.items()}


def total_entropy(digits: Any, coefficients: Coefficients) -> float:
    encoder, heads, _, tests = digits
    merged = Merged(encoder, coefficients.merged())
    return sum(entropy(heads[task](merged(x))).item() for task, (x, _) in tests.items())


@pytest.mark.parametrize("by", ["task", "tensor"])
def test_learning_lowers_entropy_without_labels(digits: Any, by: Any) -> None:
    encoder, heads, vectors, tests = digits
    coefficients = Coefficients(encoder, vectors, by)
    before = total_entropy(digits, coefficients)
    loaders = {task: x.split(64) for task, (x, _) in tests.items()}
    learn(coefficients, loaders, lambda merged, task, x: entropy(heads[task](merged(x))), steps=60, lr=1e-2)
    assert total_entropy(digits, coefficients) < {"task": 0.95, "tensor": 0.7}[by] * before


def test_plus_plus_learns_of_trimmed_and_elected_vectors(digits: Any) -> None:
    """What was trimmed from all vectors stays at the base, and entropy goes down all the same."""
    encoder, heads, vectors, tests = digits
    coefficients = Coefficients(encoder, trim_and_elect(vectors))
    before = total_entropy(digits, coefficients)
    loaders = {task: x.split(64) for task, (x, _) in tests.items()}
    learn(coefficients, loaders, lambda merged, task, x: entropy(heads[task](merged(x))), steps=60, lr=1e-2)
    assert total_entropy(digits, coefficients) < 0.85 * before
    start, kept = encoder.state_dict(), coefficients.vectors
    still = {name: torch.stack([vector[name] for vector in kept]).eq(0).all(0) for name in start}
    assert 0.2 < sum(int(mask.sum()) for mask in still.values()) / sum(mask.numel() for mask in still.values()) < 0.8
    for name, value in coefficients.merged().items():
        assert torch.equal(value[still[name]], start[name][still[name]])


def test_learning_with_labels_lowers_cross_entropy(digits: Any) -> None:
    encoder, heads, vectors, tests = digits
    coefficients = Coefficients(encoder, vectors)
    loaders = {task: list(zip(x.split(300), y.split(300), strict=True)) for task, (x, y) in tests.items()}
    history = learn(
        coefficients,
        loaders,
        lambda merged, task, batch: cross_entropy(heads[task](merged(batch[0])), batch[1]),
        steps=30,
        lr=1e-2,
    )
    assert sum(history[27].values()) < 0.9 * sum(history[0].values())
