"""Task masks: dense arithmetic beside ours, switching real modules, and files that are damaged."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from math import inf, nan, prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tests.merge.small_models import A, B, Network, exact_scales, models, same, shapes, tuned, vectors
from torch import Tensor, nn

from polytask.errors import InputError
from polytask.merge.masks import SCALES, magnitude_mask, pack, tall_mask
from polytask.merge.task_masks import Bytes, TaskMasks


@pytest.fixture
def network() -> Network:
    return Network().eval()


@pytest.fixture
def masks(network: Network) -> TaskMasks:
    return TaskMasks.build(network.state_dict(), {"a": tuned(network, 1), "b": tuned(network, 2), "c": tuned(network, 3)})


def identical(one: TaskMasks, other: TaskMasks) -> bool:
    return (
        one.tasks == other.tasks
        and same(one.base, other.base)
        and all(torch.equal(one.vector[name], other.vector[name]) for name in one.vector | other.vector)
        and all(same(one.weights(task), other.weights(task)) for task in one.tasks)
        and all(torch.equal(one.mask(task, name), other.mask(task, name)) for task in one.tasks for name in one.vector)
    )


# Building


def dense(
    base: dict[str, Tensor], experts: dict[str, dict[str, Tensor]], scale: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Base, multi-task vector and masks as the authors' code has them: one float64 matrix of flat models."""

    def flat(model: dict[str, Tensor]) -> npt.NDArray[np.float64]:
        return np.concatenate([tensor.double().numpy().ravel() for tensor in model.values()])

    theta_0, theta = flat(base), np.stack([flat(expert) for expert in experts.values()])
    tau = (theta - theta_0).sum(0)
    return theta_0, tau, np.abs(theta - theta_0) > scale * np.abs(theta_0 + tau - theta)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_dense_arithmetic(scale: float, seed: int) -> None:
    base, experts = models(torch.float64, tasks=4, seed=seed)
    masks = TaskMasks.build(base, experts, scale)
    theta_0, tau, expected = dense(base, experts, scale)
    for row, task in enumerate(experts):
        found = torch.cat([masks.mask(task, name).flatten() for name in base]).numpy()
        np.testing.assert_array_equal(found, expected[row])
        weights = torch.cat([tensor.flatten() for tensor in masks.weights(task).values()]).numpy()
        np.testing.assert_allclose(weights, theta_0 + expected[row] * tau, rtol=1e-15, atol=1e-15)
        assert masks.density(task) == pytest.approx(expected[row].mean())
    counts = expected.sum(0)
    assert masks.counts().tolist() == np.bincount(counts, minlength=5).tolist()
    for k in range(6):
        found = torch.cat([tensor.flatten() for tensor in masks.consensus(k).values()]).numpy()
        np.testing.assert_allclose(found, np.where(counts >= k, tau, 0), rtol=1e-14, atol=1e-15)


@given(vectors(4), exact_scales)
def test_float32_and_float64_agree_on_exact_values(rows: Tensor, scale: float) -> None:
    base, *deltas = rows
    experts = {str(index): {"w": base + delta} for index, delta in enumerate(deltas)}
    masks = TaskMasks.build({"w": base}, experts, scale)
    _, tau, expected = dense({"w": base}, experts, scale)
    for row, task in enumerate(experts):
        assert masks.mask(task, "w").tolist() == expected[row].tolist()
        assert masks.weights(task)["w"].tolist() == (base.double().numpy() + expected[row] * tau).tolist()


def test_one_expert_and_disjoint_experts_come_back_whole() -> None:
    base = {"w": torch.zeros(4)}
    assert TaskMasks.build(base, {"a": {"w": A}}).weights("a")["w"].tolist() == A.tolist()
    left, right = torch.tensor([1.0, -3.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 2.0, 0.0])
    for scale in (0.1, 1.0, 50.0):
        masks = TaskMasks.build(base, {"left": {"w": left}, "right": {"w": right}}, scale)
        assert masks.weights("left")["w"].tolist() == left.tolist()
        assert masks.weights("right")["w"].tolist() == right.tolist()
        assert not masks.consensus(2)["w"].any() and masks.counts().tolist() == [1, 3, 0]


def test_consensus_from_the_plain_rule_to_the_base() -> None:
    masks = TaskMasks.build({"w": torch.zeros(4)}, {"a": {"w": A}, "b": {"w": B}}, 1.0)
    assert masks.consensus(0)["w"].tolist() == (A + B).tolist()
    assert masks.consensus(1)["w"].tolist() == [0.0, 1.0, 1.0, -1.0]  # coordinate 0 is catastrophic: a tie for both
    assert not masks.consensus()["w"].any()
    assert not masks.consensus(3)["w"].any()
    with pytest.raises(InputError, match="k -1"):
        masks.consensus(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_computed_in_float32(dtype: torch.dtype) -> None:
    base, experts = models(dtype)
    masks = TaskMasks.build(base, experts)
    wide = TaskMasks.build(
        {name: theta.float() for name, theta in base.items()},
        {task: {name: theta.float() for name, theta in expert.items()} for task, expert in experts.items()},
    )
    for task in experts:
        assert all(tensor.dtype == torch.float32 for tensor in masks.vector.values())
        assert same(masks.weights(task), {name: theta.to(dtype) for name, theta in wide.weights(task).items()})


def test_an_expert_in_float32_is_not_rounded_to_a_base_in_bfloat16() -> None:
    base = {"w": torch.ones(2, dtype=torch.bfloat16)}
    masks = TaskMasks.build(base, {"a": {"w": torch.tensor([1.0 + 2**-12, 1.0])}})
    assert masks.vector["w"].tolist() == [2**-12, 0.0] and masks.mask("a", "w").tolist() == [True, False]


def test_a_given_multi_task_vector_and_a_scale_for_each_task() -> None:
    merged = torch.tensor([1.0, 1.0, 2.0, 0.0])
    masks = TaskMasks.build({"w": torch.zeros(4)}, {"a": {"w": A}, "b": {"w": B}}, {"b": 0.0, "a": 1.0}, {"w": merged})
    assert masks.mask("a", "w").tolist() == tall_mask(A, merged, 1.0).tolist() == [True, False, True, False]
    assert masks.mask("b", "w").tolist() == (B != 0).tolist()
    assert masks.weights("b")["w"].tolist() == [1.0, 1.0, 2.0, 0.0]
    merged.zero_()
    assert masks.vector["w"].any()


def test_a_coordinate_outside_the_mask_keeps_the_base_s_bits() -> None:
    base = torch.tensor([-0.0, 1e-40, 3.0])
    masks = TaskMasks.build({"w": base}, {"a": {"w": torch.tensor([-0.0, 1e-40, 4.0])}})
    assert masks.weights("a")["w"].view(torch.int32)[:2].tolist() == base.view(torch.int32)[:2].tolist()


class Lazy(Mapping[str, Tensor]):
    """A checkpoint that is read one tensor at a time."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.reads: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.reads.append(name)
        return self.tensors[name].clone()

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_lazy_checkpoints_are_read_twice_at_most() -> None:
    base, experts = models()
    lazy = {task: Lazy(expert) for task, expert in experts.items()}
    lazy_base = Lazy(base)
    assert identical(TaskMasks.build(lazy_base, lazy), TaskMasks.build(base, experts))
    assert sorted(lazy_base.reads) == sorted(base)
    for expert in lazy.values():
        assert sorted(expert.reads) == sorted([*base, *base])


def test_statistics_and_integers_are_kept_for_the_tasks_that_differ(network: Network) -> None:
    base = network.state_dict()
    expert = tuned(network, 1)
    twin = {**expert, "norm.running_mean": base["norm.running_mean"], "norm.num_batches_tracked": torch.tensor(0)}
    masks = TaskMasks.build(base, {"expert": expert, "twin": twin})
    assert masks.kept["expert"].keys() == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert masks.kept["twin"].keys() == {"norm.running_var"}
    assert set(masks.vector) == {name for name, _ in network.named_parameters()}
    for task, own in (("expert", expert), ("twin", twin)):
        weights = masks.weights(task)
        assert all(torch.equal(weights[name], own[name]) for name in base.keys() - masks.vector.keys())
    weights["table"].add_(1)
    assert masks.weights("expert")["table"].tolist() == [0, 1, 2, 3]


def broken(change: Callable[[dict[str, Tensor], dict[str, Tensor]], object]) -> None:
    """Build with the base and one expert of two, changed."""
    base, experts = models(tasks=2)
    base["steps"] = torch.tensor(3)
    for expert in experts.values():
        expert["steps"] = torch.tensor(4)
    TaskMasks.build(base, experts)
    change(base, experts["task 1"])
    TaskMasks.build(base, experts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, expert: expert.pop("scale"), r"expert 'task 1': no tensor 'scale', which the base has"),
        (lambda _, expert: expert.update(head=A), r"expert 'task 1': tensor 'head' is not in the base"),
        (lambda base, _: base.update(head=A), r"expert 'task 0': no tensor 'head', which the base has"),
        (
            lambda _, expert: expert.update({"layer.weight": torch.zeros(7, 5)}),
            r"expert 'task 1', tensor 'layer\.weight': shape \(7, 5\), expected \(5, 7\)",
        ),
        (lambda _, expert: expert["layer.bias"].fill_(nan), r"expert 'task 1', tensor 'layer\.bias': values .* not finite"),
        (lambda _, expert: expert["scale"].fill_(inf), r"expert 'task 1', tensor 'scale': values .* not finite"),
        (
            lambda _, expert: expert.update(scale=torch.tensor(1)),
            r"'task 1', tensor 'scale': torch.int64, expected torch.fl",
        ),
        (lambda _, expert: expert.update(steps=torch.tensor(1.0)), r"'steps': torch.float32, expected torch.int64"),
        (lambda _, expert: expert.update(steps=torch.tensor(1).int()), r"'steps': torch.int32, expected torch.int64"),
        (lambda _, expert: expert.update(steps=torch.ones(2).long()), r"'steps': shape \(2,\), expected \(\)"),
    ],
)
def test_experts_that_do_not_fit(change: Callable[[dict[str, Tensor], dict[str, Tensor]], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        broken(change)
    assert "\n" not in str(caught.value)


def test_a_statistic_that_is_not_finite(network: Network) -> None:
    expert = tuned(network, 1)
    expert["norm.running_var"][0] = nan
    with pytest.raises(InputError, match=r"expert 'a', tensor 'norm\.running_var': values that are not finite"):
        TaskMasks.build(network.state_dict(), {"a": expert})


def test_a_result_that_the_base_s_type_cannot_hold() -> None:
    base = {"w": torch.zeros(2, dtype=torch.float16)}
    expert = {"w": torch.tensor([60000.0, 0.0]).half()}
    with pytest.raises(InputError, match=r"tensor 'w': base \+ multi-task vector is too large for torch\.float16"):
        TaskMasks.build(base, {"a": expert, "b": dict(expert)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, r"the scale of task 'a' -1\.0: expected a finite number >= 0"),
        ({"scale": {"a": 0.4}}, r"the scales: no task 'b'"),
        ({"scale": {"a": 0.4, "b": 0.4, "c": 0.4}}, r"the scales: task 'c' is not in the experts"),
        ({"scale": {"a": 0.4, "b": nan}}, r"the scale of task 'b' nan"),
        ({"vector": "mean"}, r"multi-task vector 'mean', expected 'sum'"),
        ({"vector": {}}, r"the multi-task vector: no tensor 'w'"),
        ({"vector": {"w": A, "v": A}}, r"the multi-task vector: tensor 'v' is not in the base's floating tensors"),
        ({"vector": {"w": A[:3]}}, r"the multi-task vector's tensor 'w' shape \(3,\), expected \(4,\)"),
        ({"vector": {"w": A.long()}}, r"the multi-task vector's tensor 'w' torch.int64, expected torch.float32"),
        ({"vector": {"w": A * nan}}, r"the multi-task vector's tensor 'w' has values that are not finite"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TaskMasks.build({"w": torch.zeros(4)}, {"a": {"w": A}, "b": {"w": B}}, **settings)  # type: ignore[arg-type]


def test_nothing_to_mask() -> None:
    with pytest.raises(InputError, match="no experts"):
        TaskMasks.build({"w": A}, {})
    with pytest.raises(InputError, match="vector of no values"):
        TaskMasks.build({"steps": torch.tensor(1)}, {"a": {"steps": torch.tensor(1)}})
    with pytest.raises(InputError, match="no tasks"):
        TaskMasks({"w": A}, {"w": A}, {})


def test_a_base_that_is_not_finite_is_named() -> None:
    with pytest.raises(InputError, match=r"the base's tensor 'w' has values that are not finite"):
        TaskMasks({"w": A * inf}, {"w": B}, {"a": {"w": pack(B > 0)}})
    with pytest.raises(InputError, match=r"the base's tensor 'v' has values that are not finite"):
        TaskMasks({"w": A, "v": A * inf}, {"w": B}, {"a": {"w": pack(B > 0)}})


def test_masks_of_one_s_own_and_a_vector_in_half_precision() -> None:
    base, experts = models()
    built = TaskMasks.build(base, experts)
    tau = {task: {name: expert[name] - base[name] for name in base} for task, expert in experts.items()}
    chosen = {
        task: {name: magnitude_mask(delta.flatten(), 0.3) for name, delta in deltas.items()} for task, deltas in tau.items()
    }
    packed = {task: {name: pack(mask) for name, mask in own.items()} for task, own in chosen.items()}
    half = {name: vector.bfloat16() for name, vector in built.vector.items()}
    masks = TaskMasks(base, half, packed)
    for task, name in product(experts, base):
        expected = base[name] + half[name].float() * chosen[task][name].view(base[name].shape)
        torch.testing.assert_close(masks.weights(task)[name], expected, rtol=0, atol=0)
    assert masks.bytes().stored < built.bytes().stored
    with pytest.raises(InputError, match="task 'b', which has no mask"):
        TaskMasks(base, half, packed, {"b": {}})
    with pytest.raises(InputError, match=r"task 'task 0' keeps tensor 'scale', expected a tensor .* not masked"):
        TaskMasks(base, half, packed, {"task 0": {"scale": base["scale"]}})


# Switching a module


def test_switching_gives_each_task_s_weights_and_comes_back(network: Network, masks: TaskMasks) -> None:
    x = torch.randn(4, 6)
    places = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    outputs = {}
    for task in masks.tasks:
        reference = Network().eval()
        reference.load_state_dict(masks.weights(task))
        outputs[task] = reference(x)
    assert not torch.equal(outputs["a"], outputs["b"])
    for task in ("a", "b", "a", "c", "b"):
        masks.apply(network, task)
        assert torch.equal(network(x), outputs[task])
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == places
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in network.parameters())


def test_switching_a_model_never_reaches_the_base_that_it_was_built_from(network: Network) -> None:
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    masks = TaskMasks.build(network.state_dict(), {"a": tuned(network, 1)})
    masks.apply(network, "a")
    assert same(masks.base, kept)


def test_one_expert_is_served_as_it_was(network: Network) -> None:
    expert = tuned(network, 1)
    reference = Network().eval()
    reference.load_state_dict(expert)
    TaskMasks.build(network.state_dict(), {"a": expert}).apply(network, "a")
    x = torch.randn(8, 6)
    torch.testing.assert_close(network(x), reference(x), rtol=1e-5, atol=1e-6)


def test_a_module_in_another_floating_type(network: Network, masks: TaskMasks) -> None:
    network.double()
    masks.apply(network, "b")
    weights = masks.weights("b")
    assert all(torch.equal(tensor, weights[name].to(tensor)) for name, tensor in network.state_dict().items())
    x = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(masks.forward(network, x, ["b", "b"]), network(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: module.add_module("third", nn.Linear(2, 2)), r"the module's tensor 'third\.weight' is not in the"),
        (lambda module: setattr(module.second, "bias", None), r"the module has no tensor 'second\.bias'"),
        (lambda module: setattr(module, "second", nn.Linear(4, 3)), r"'second\.weight' is torch.float32 of shape \(3, 4\)"),
        (lambda module: setattr(module, "table", torch.zeros(4)), r"'table' is torch.float32 .* expected torch.int64"),
        (lambda module: module.to("meta"), "on meta"),
    ],
)
def test_a_module_that_does_not_fit_is_left_as_it_was(
    network: Network, masks: TaskMasks, change: Callable[[nn.Module], object], message: str
) -> None:
    change(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=message):
        masks.apply(network, "a")
    with pytest.raises(InputError, match=message):
        masks.forward(network, torch.randn(1, 6), ["a"])
    assert all(tensor.is_meta or torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(x))
        return out


@pytest.mark.parametrize("names", [("embed.weight", "head.weight"), ("embed.weight",), ("head.weight",)])
def test_tied_weights_stay_tied_whichever_name_is_stored(names: tuple[str, ...]) -> None:
    module = Tied()
    delta = torch.randn(3, 3)
    base = {name: module.state_dict()[name] for name in names}
    masks = TaskMasks.build(base, {"a": {name: theta + delta for name, theta in base.items()}})
    x = torch.randn(2, 3)
    expected = x @ masks.weights("a")[names[0]].T @ masks.weights("a")[names[0]].T
    torch.testing.assert_close(masks.forward(module, x, ["a", "a"]), expected)
    masks.apply(module, "a")
    assert module.head.weight is module.embed.weight
    torch.testing.assert_close(module(x), expected)


def test_tied_weights_that_differ() -> None:
    module = Tied()
    base = module.state_dict()
    masks = TaskMasks.build(base, {"a": {name: theta + index for index, (name, theta) in enumerate(base.items())}})
    with pytest.raises(InputError, match=r"ties 'embed\.weight' and 'head\.weight', which differ for task 'a'"):
        masks.apply(module, "a")


def test_an_unknown_task(network: Network, masks: TaskMasks) -> None:
    calls: list[Callable[[], object]] = [
        lambda: masks.weights("d"),
        lambda: masks.apply(network, "d"),
        lambda: masks.density("d"),
        lambda: masks.mask("d", "first.weight"),
        lambda: masks.forward(network, torch.randn(2, 6), ["a", "d"]),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"unknown task 'd', expected one of 'a', 'b', 'c'"):
            call()
    with pytest.raises(InputError, match="tensor 'table' is not masked"):
        masks.mask("a", "table")


# A batch of mixed tasks


@given(tasks=st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_a_mixed_batch_gives_each_example_its_own_model(tasks: list[str]) -> None:
    network = Network().eval()
    masks = TaskMasks.build(network.state_dict(), {"a": tuned(network, 1), "b": tuned(network, 2), "c": tuned(network, 3)})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x = torch.randn(len(tasks), 6)
    found = masks.forward(network, x, tasks)
    assert same(network.state_dict(), before)
    for row, task in enumerate(tasks):
        masks.apply(network, task)
        torch.testing.assert_close(found[row], network(x[row : row + 1])[0])


def test_a_mixed_batch_carries_gradients_to_its_inputs(network: Network, masks: TaskMasks) -> None:
    x = torch.randn(3, 6, requires_grad=True)
    masks.forward(network, x, ["b", "a", "b"]).sum().backward()
    assert x.grad is not None
    for row, task in enumerate("bab"):
        masks.apply(network, task)
        alone = x[row : row + 1].detach().requires_grad_()
        network(alone).sum().backward()
        assert alone.grad is not None
        torch.testing.assert_close(x.grad[row], alone.grad[0])
    assert all(tensor.grad is None for tensor in masks.base.values())


def test_training_mode_leaves_the_kept_statistics_alone(network: Network, masks: TaskMasks) -> None:
    network.train()
    before = masks.weights("a")
    masks.forward(network, torch.randn(4, 6), ["a"] * 4)
    assert same(masks.weights("a"), before)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.layer(inputs["x"]) * inputs["gain"][:, None]
        return out


def test_a_mixed_batch_of_named_inputs() -> None:
    module = Named()
    base = module.state_dict()
    masks = TaskMasks.build(
        base, {task: {name: theta + index for name, theta in base.items()} for index, task in enumerate("ab")}
    )
    inputs = {"x": torch.randn(3, 2), "gain": torch.tensor([1.0, 2.0, 3.0])}
    found = masks.forward(module, inputs, ["b", "a", "b"])
    for row, task in enumerate("bab"):
        masks.apply(module, task)
        torch.testing.assert_close(found[row], module({name: tensor[row : row + 1] for name, tensor in inputs.items()})[0])
    with pytest.raises(InputError, match="gain of 2 examples, 3 tasks"):
        masks.forward(module, {**inputs, "gain": torch.ones(2)}, ["a"] * 3)


class Odd(nn.Module):
    """Its output's shape follows from a weight."""

    def __init__(self, shape: Callable[[Tensor, int], object]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.shape = shape

    def forward(self, x: Tensor) -> object:
        return self.shape(x, round(float(self.w)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (lambda x, n: x.new_zeros(len(x), n), r"task 'b': outputs of shape \(2,\), but task 'a' has \(1,\)"),
        (lambda x, n: x.sum(), r"task 'a': output of shape \(\), expected a tensor of 1 examples"),
        (lambda x, n: {"y": x}, r"task 'a': output of type dict"),
    ],
)
def test_outputs_that_do_not_make_a_batch(shape: Callable[[Tensor, int], object], message: str) -> None:
    masks = TaskMasks.build({"w": torch.tensor(0.0)}, {"a": {"w": torch.tensor(1.0)}, "b": {"w": torch.tensor(2.0)}}, 0.1)
    masks = TaskMasks(masks.base, {"w": torch.tensor(1.0)}, masks.masks)
    two = TaskMasks({"w": torch.tensor(1.0)}, masks.vector, {"a": {"w": pack(torch.tensor(False))}, "b": masks.masks["b"]})
    with pytest.raises(InputError, match=message):
        two.forward(Odd(shape), torch.zeros(2, 1), ["a", "b"])


def test_batches_that_do_not_fit_their_tasks(network: Network, masks: TaskMasks) -> None:
    with pytest.raises(InputError, match="inputs of 2 examples, 3 tasks"):
        masks.forward(network, torch.randn(2, 6), ["a", "b", "a"])
    with pytest.raises(InputError, match="no examples"):
        masks.forward(network, torch.randn(0, 6), [])


# Bytes and files


@pytest.mark.parametrize("tasks", [1, 2, 8, 20])
def test_the_ratio_of_bytes_is_the_paper_s(tasks: int) -> None:
    base = {"w": torch.zeros(8, 3), "v": torch.zeros(16)}
    experts = {str(task): {name: theta + task for name, theta in base.items()} for task in range(tasks)}
    size = TaskMasks.build(base, experts).bytes()
    assert size.ratio == (2 * 32 + tasks) / (32 * (tasks + 1))
    assert size.separate == 40 * 4 * (tasks + 1)
    if tasks == 20:
        assert size.ratio == 0.125


def test_the_bytes_are_known_before_there_are_experts() -> None:
    base, experts = models(tasks=5)
    sizes = [theta.numel() for theta in base.values()]
    assert Bytes.of(sizes, tasks=5) == TaskMasks.build(base, experts).bytes()
    assert Bytes.of(sizes, tasks=5, bytes_each=8) == TaskMasks.build(*models(torch.float64, tasks=5)).bytes()


def test_the_bytes_are_those_of_the_file(masks: TaskMasks, tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == header + masks.bytes().stored
    values = sum(tensor.numel() for tensor in masks.vector.values())
    unmasked = 4 * (5 + 5) + 8 + 8 * 4  # mean, variance, number of batches, table
    packed = sum(-(-tensor.numel() // 8) for tensor in masks.vector.values())
    assert masks.bytes().stored == 2 * 4 * values + unmasked + 3 * packed + 3 * (4 * (5 + 5) + 8)
    assert masks.bytes().separate == 4 * (4 * values + unmasked)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


@given(
    st.dictionaries(
        names, st.tuples(shapes, st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64])), max_size=4
    ),
    st.lists(names, min_size=1, max_size=3, unique=True),
    st.integers(0, 2**31),
)
def test_a_file_gives_back_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]],
    tasks: list[str],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    base = {name: (8 * torch.randn(shape)).to(dtype) for name, (shape, dtype) in tensors.items()}
    base["one"] = torch.randn(3, 3)
    experts = {
        task: {name: theta + (4 * torch.randn(theta.shape)).to(theta) for name, theta in base.items()} for task in tasks
    }
    masks = TaskMasks.build(base, experts)
    path = tmp_path_factory.mktemp("file") / "masks.safetensors"
    masks.save(path)
    found = TaskMasks.load(path)
    assert identical(found, masks)
    assert list(found.base) == list(masks.base)
    found.save(path)  # over the very file that it is mapped from
    assert identical(TaskMasks.load(path), masks) and identical(found, masks)


def test_a_file_reads_by_its_documented_names_alone(masks: TaskMasks, tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    with safe_open(path, framework="np") as file:
        about = file.metadata()
        index = json.loads(about["tasks"]).index("b")
        shape = json.loads(about["shapes"])["first.weight"]
        bits = np.unpackbits(file.get_tensor(f"mask/{index}/first.weight"))[: prod(shape)].reshape(shape)
        weight = file.get_tensor("base/first.weight") + bits * file.get_tensor("vector/first.weight")
    np.testing.assert_array_equal(weight, masks.weights("b")["first.weight"].numpy())


def test_a_file_may_be_read_by_whoever_may_read_its_neighbours(masks: TaskMasks, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    masks.save(tmp_path / "masks.safetensors")
    assert (tmp_path / "masks.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_tensors_in_one_memory_are_written_whole(tmp_path: Path) -> None:
    packed = pack(A > 0)
    masks = TaskMasks({"w": A, "v": A, "t": torch.zeros(2, 3).T}, {"w": A, "v": B}, {"a": {"w": packed, "v": packed}})
    masks.save(tmp_path / "masks.safetensors")
    assert identical(TaskMasks.load(tmp_path / "masks.safetensors"), masks)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: to a writer, as a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_earlier_file(masks: TaskMasks, tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    big = {"w": torch.zeros(100_000)}
    with file_size_limit(10_000), pytest.raises(InputError, match=r"masks\.safetensors: cannot be written"):
        TaskMasks.build(big, {"a": {"w": torch.ones(100_000)}}).save(path)
    assert identical(TaskMasks.load(path), masks)
    assert [file.name for file in tmp_path.iterdir()] == ["masks.safetensors"]


def test_paths_that_are_no_file(masks: TaskMasks, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        masks.save(tmp_path / "file" / "masks.safetensors")
    with pytest.raises(InputError, match=r"none\.safetensors: there is no such file"):
        TaskMasks.load(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"damaged, not a whole safetensors file"):
        TaskMasks.load(tmp_path)
    with pytest.raises(InputError, match=r"file: damaged, not a whole safetensors file"):
        TaskMasks.load(tmp_path / "file")


def test_a_truncated_file_at_any_byte(masks: TaskMasks, tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    whole = path.read_bytes()
    for end in [*range(0, len(whole), 13), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"masks\.safetensors: damaged, not a whole safetensors file") as caught:
            TaskMasks.load(path)
        assert "\n" not in str(caught.value)


def test_a_header_of_a_hostile_size(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="damaged"):
        TaskMasks.load(path)


Change = Callable[[dict[str, Tensor], dict[str, str]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, about: about.pop("format"), "format None, expected 'polytask task masks 1'"),
        (lambda _, about: about.update(format="polytask task masks 2"), "format 'polytask task masks 2'"),
        (lambda _, about: about.update(tasks="["), "metadata 'tasks' is not JSON"),
        (lambda _, about: about.update(shapes="[" * 100_000), "metadata 'shapes' is not JSON"),
        (lambda _, about: about.pop("shapes"), "metadata 'shapes' is not JSON"),
        (lambda _, about: about.update(tasks='["a", "b", "a"]'), "metadata 'tasks': expected a list of different names"),
        (lambda _, about: about.update(tasks='{"a": 1}'), "metadata 'tasks': expected a list"),
        (lambda _, about: about.update(shapes="[]"), "metadata 'shapes': expected a shape for each name"),
        (lambda _, about: about.update(tasks='["a", "b"]'), r"tensor 'kept/2/.*', expected .* of 2 tasks"),
        (
            lambda _, about: about.update(tasks='["a", "b", "c", "d"]'),
            r"the mask of task 'd': no tensor 'first\.weight', wh",
        ),
        (
            lambda _, about: about.update(shapes=about["shapes"].replace("[5, 6]", "[6, 5]")),
            r"tensor 'base/first\.weight' of shape \[5, 6\], expected \[6, 5\]",
        ),
        (lambda tensors, _: tensors.pop("base/table"), "the base: no tensor 'table', which the file's shapes has"),
        (lambda tensors, _: tensors.update({"base/more": A}), "the base: tensor 'more' is not in the file's shapes"),
        (lambda tensors, _: tensors.pop("mask/1/norm.bias"), r"the mask of task 'b': no tensor 'norm\.bias'"),
        (
            lambda tensors, _: tensors.update({"mask/1/more": pack(A > 0)}),
            r"the mask of task 'b': tensor 'more' is not in the multi-task vector",
        ),
        (
            lambda tensors, _: tensors.update({"mask/1/norm.bias": tensors["mask/1/first.weight"]}),
            r"task 'b', tensor 'norm\.bias': a packed mask is torch.uint8 of shape \(4,\), expected .* \(1,\) for 5 values",
        ),
        (
            lambda tensors, _: tensors.update({"mask/1/norm.bias": torch.tensor([255], dtype=torch.uint8)}),
            r"task 'b', tensor 'norm\.bias': a packed mask has bits behind its 5 values",
        ),
        (
            lambda tensors, _: tensors.update({"mask/1/norm.bias": torch.ones(5)}),
            r"task 'b', tensor 'norm\.bias': a packed mask is torch.float32",
        ),
        (lambda tensors, _: tensors.update({"mask/03/norm.bias": A}), "tensor 'mask/03/norm.bias', expected base/"),
        (lambda tensors, _: tensors.update({"other": A}), "tensor 'other', expected base/"),
        (
            lambda tensors, _: tensors.pop("vector/norm.bias"),
            r"task 'a': tensor 'norm\.bias' is not in the multi-task vector",
        ),
        (lambda tensors, _: tensors.update({"vector/more": A}), "the multi-task vector has tensor 'more', which the base"),
        (
            lambda tensors, _: tensors["vector/norm.bias"].fill_(nan),
            r"the multi-task vector's tensor 'norm\.bias' has values",
        ),
        (lambda tensors, _: tensors["base/norm.bias"].fill_(inf), r"the base's tensor 'norm\.bias' has values"),
        (
            lambda tensors, _: tensors.update({"vector/norm.bias": torch.ones(5).long()}),
            r"vector's tensor 'norm\.bias' torch.int64, expected torch.float32",
        ),
        (
            lambda tensors, _: tensors.update({"kept/0/first.bias": torch.ones(5)}),
            r"'a' keeps tensor 'first\.bias', expected",
        ),
        (
            lambda tensors, _: tensors.update({"kept/0/table": torch.ones(4)}),
            "'table' that it keeps torch.float32, expected",
        ),
        (lambda tensors, _: tensors.update({"kept/0/table": torch.ones(4).int()}), "'table' as torch.int32, expected"),
        (lambda tensors, _: tensors["kept/0/norm.running_var"].fill_(nan), r"'norm\.running_var' with values .* not finite"),
    ],
)
def test_a_mislabelled_file(masks: TaskMasks, tmp_path: Path, change: Change, message: str) -> None:
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    change(tensors, about)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, about)
    with pytest.raises(InputError, match=message) as caught:
        TaskMasks.load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    save_file({"w": A}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: format None, expected 'polytask task masks 1'"):
        TaskMasks.load(tmp_path / "model.safetensors")


def test_it_prints_well(masks: TaskMasks) -> None:
    assert repr(masks) == "TaskMasks(3 tasks, 10 tensors of 78 values)"
