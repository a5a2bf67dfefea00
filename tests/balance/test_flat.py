"""Sharpness-aware steps: closed forms, what they leave alone, and several batches, scales and processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

import polytask as pt
from polytask.balance import Balancer, Estimated, Fixed, GramianWeighting, JacobianAggregator, Uncertainty, balancers
from polytask.balance.cagrad import CAGrad
from polytask.balance.flat import FlatRegions, HeldGradients
from polytask.balance.perturb import frozen_statistics, moved, perturbation, reached
from polytask.balance.sam import SAM
from polytask.errors import InputError
from polytask.testing import check_balancer

Make = Callable[[], Balancer]


class Linear(GramianWeighting):
    """A fixed weighted sum, as a balancer of gradients."""

    def weigh(self, gramian: Tensor, losses: Mapping[str, float]) -> Tensor:
        return torch.arange(1.0, len(losses) + 1, dtype=torch.float64)


class Net(nn.Module):
    """A shared layer, and a head for each task; batches are ``(x, targets by task)``."""

    def __init__(self, tasks: Sequence[str] = ("a", "b", "c"), middle: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Sequential(nn.Linear(5, 4), *middle, nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in tasks})
        self.double()

    def batch(self, seed: int = 0, rows: int = 12) -> tuple[Tensor, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
        names = enumerate(self.heads, start=1)
        return x, {name: k * torch.randn(rows, generator=generator, dtype=torch.float64) for k, name in names}

    def losses(self, x: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = self.shared(x)
        return {name: (self.heads[name](features).squeeze(1) - y).square().mean() for name, y in targets.items()}

    def step(self, balancer: Balancer, *batches: tuple[Tensor, dict[str, Tensor]], scale: float = 1.0) -> dict[str, Tensor]:
        """The gradients that a step leaves."""
        self.zero_grad()
        batches = batches or (self.batch(),)
        balancer.prepare(list(self.heads))
        evaluations = [lambda batch=batch: self.losses(*batch) for batch in batches]
        backward = torch.Tensor.backward if scale == 1 else lambda loss: (loss * scale).backward()
        balancer.step(evaluations, list(self.shared.parameters()), backward)
        return {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}

    def by_hand(self, task: str, rho: float, adaptive: bool = False, rho_own: float | None = None) -> dict[str, Tensor]:
        """The gradient of one task from its own worst point, written out from a copy of the network."""
        x, targets = self.batch()
        names = [n for n, _ in self.named_parameters() if n.startswith(("shared", f"heads.{task}"))]
        weights = {n: p.detach().clone() for n, p in self.named_parameters()}

        def gradient(weights: dict[str, Tensor]) -> dict[str, Tensor]:
            leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
            losses = torch.func.functional_call(_Losses(self), {f"net.{n}": w for n, w in leaves.items()}, (x, targets))
            return dict(zip(names, torch.autograd.grad(losses[task], [leaves[n] for n in names]), strict=True))

        first = gradient(weights)
        groups = [(names, rho)]
        if rho_own is not None:
            groups = [([n for n in names if n.startswith(part)], r) for part, r in (("shared", rho), ("heads", rho_own))]
        for group, r in groups:
            t = {n: weights[n].abs() if adaptive else torch.ones_like(weights[n]) for n in group}
            norm = torch.cat([(t[n] * first[n]).flatten() for n in group]).norm()
            for n in group:
                weights[n] = weights[n] + r * t[n].square() * first[n] / norm
        return gradient(weights)


class _Losses(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.net.losses(x, targets)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], rtol: float = 1e-9, atol: float = 1e-11) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=rtol, atol=atol, msg=name)


# The contract


@pytest.mark.parametrize("inner", [*(name for name in ("equal", "uncertainty", "mgda", "upgrad") if name in balancers)])
@pytest.mark.parametrize("wrap", [FlatRegions, lambda inner: FlatRegions(inner, split=False), SAM])
def test_wrappers_keep_the_contract(inner: str, wrap: Callable[[str], Balancer]) -> None:
    check_balancer(lambda: wrap(inner))


def test_adaptive_ones_keep_the_contract() -> None:
    check_balancer(balancers["asam"])
    check_balancer(lambda: FlatRegions(CAGrad(), rho=0.1, adaptive=True, norm="separate"))


# Closed forms


@pytest.mark.parametrize("make", [lambda: "equal", lambda: "mgda", CAGrad, Uncertainty, Linear])
@pytest.mark.parametrize("wrap", [FlatRegions, SAM])
def test_radius_0_is_the_inner_balancer(make: Callable[[], Balancer | str], wrap: Callable[..., Balancer]) -> None:
    net, inner = Net(), make()
    plain = net.step(balancers[inner]() if isinstance(inner, str) else inner)
    wrapped = net.step(wrap(make(), rho=0.0))
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain) and plain.keys() == wrapped.keys()
    # and the limit is not another one: what settles the vanishing flat part adds nothing
    same(net.step(wrap(make(), rho=1e-7)), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rho", [0.01, 0.5, 3.0])
def test_of_a_quadratic_the_flat_part_is_rho_m_g_over_g_exactly(rho: float) -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(6, dtype=torch.float64))
    forms = {name: (m := torch.randn(6, 6, dtype=torch.float64)) @ m.T for name in "ab"}
    seen: list[HeldGradients] = []

    class Spy(Linear):
        def settle(self, gradients: HeldGradients) -> None:  # type: ignore[override]
            seen.append(gradients)
            super().settle(gradients)

    balancer = FlatRegions(Spy(), rho=rho)
    balancer.prepare(["a", "b"])
    balancer.flat.settle = balancer.inner.settle  # type: ignore[union-attr,method-assign]
    balancer.step([lambda: {n: w @ m @ w / 2 for n, m in forms.items()}], [w], torch.Tensor.backward)
    g = torch.stack([m @ w.detach() for m in forms.values()])
    flat = torch.stack([rho * m @ row / row.norm() for m, row in zip(forms.values(), g, strict=True)])
    torch.testing.assert_close(seen[0].jacobian(), g)
    torch.testing.assert_close(seen[1].jacobian(), flat, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(seen[1].gramian(), flat @ flat.T, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(w.grad, torch.tensor([1.0, 2.0], dtype=torch.float64) @ (g + flat))
    assert list(seen[0].losses) == ["a", "b"]
    assert seen[0].losses["a"] == pytest.approx(float((w @ forms["a"] @ w / 2).detach()))


@pytest.mark.parametrize(("adaptive", "rho", "rho_own"), [(False, 0.3, None), (True, 2.0, None), (False, 0.3, 0.1)])
@pytest.mark.parametrize("split", [True, False])
def test_a_linear_rule_gives_the_weighted_sum_of_each_tasks_own_sam_gradient(
    adaptive: bool, rho: float, rho_own: float | None, split: bool
) -> None:
    """Split or not; weights on shared parameters only for a balancer of gradients, on all for a loss weighting."""
    net = Net()
    norm = "joint" if rho_own is None else "separate"
    found = net.step(FlatRegions(Linear(), rho, adaptive, norm, rho_own, split))  # type: ignore[arg-type]
    weighted = net.step(FlatRegions(Fixed({"b": 2, "c": 3}), rho, adaptive, norm, rho_own, split))  # type: ignore[arg-type]
    expected: dict[str, Tensor] = {}
    everywhere: dict[str, Tensor] = {}
    for weight, task in enumerate(net.heads, start=1):
        for name, gradient in net.by_hand(task, rho, adaptive, rho_own).items():
            expected[name] = expected.get(name, 0) + (weight if name.startswith("shared") else 1) * gradient
            everywhere[name] = everywhere.get(name, 0) + weight * gradient
    same(found, expected)
    same(weighted, everywhere)


@pytest.mark.parametrize("make", [lambda: "equal", lambda: "mgda", lambda: "upgrad", CAGrad, lambda: "pcgrad"])
def test_one_task_alone_is_plain_sam(make: Callable[[], Balancer | str]) -> None:
    if make() == "pcgrad":
        pytest.importorskip("polytask.balance.pcgrad")
    net = Net(["a"])
    expected = net.by_hand("a", 0.2)
    same(net.step(FlatRegions(make(), 0.2)), expected)
    same(net.step(SAM(make(), 0.2)), expected)


def test_sam_moves_along_the_sum_of_the_losses() -> None:
    net, rho = Net(), 0.3
    x, targets = net.batch()
    parameters = list(net.parameters())
    first = torch.autograd.grad(sum(net.losses(x, targets).values()), parameters)  # type: ignore[arg-type]
    norm = torch.cat([g.flatten() for g in first]).norm()
    copy = Net()
    with torch.no_grad():
        for p, g in zip(copy.parameters(), first, strict=True):
            p.add_(rho * g / norm)
    same(net.step(SAM(Linear(), rho)), copy.step(Linear()))


numbers = st.floats(-3, 3).map(lambda x: x if abs(x) > 1e-3 else 0.5)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), st.floats(-30, 30), st.floats(1e-3, 5))
def test_the_length_of_a_perturbation_is_rho_whatever_the_scale_of_the_loss(
    pairs: list[tuple[float, float]], exponent: float, rho: float
) -> None:
    w, g = torch.tensor(pairs).T
    pieces, gradients = (w[:1], w[1:]), [part * 10**exponent for part in (g[:1], g[1:])]
    plain = perturbation(pieces, gradients, rho)
    adaptive = perturbation(pieces, gradients, rho, adaptive=True)
    assert plain is not None and adaptive is not None
    assert float(torch.cat(plain).norm()) == pytest.approx(rho, rel=1e-4)
    assert float((torch.cat(adaptive) / w).norm()) == pytest.approx(rho, rel=1e-4)
    direction = w.square() * g
    torch.testing.assert_close(torch.cat(adaptive), rho * direction / (w.abs() * g).norm(), rtol=1e-3, atol=1e-6)


def test_a_weight_of_0_does_not_move_when_adaptive() -> None:
    w, g = torch.tensor([0.0, 2.0]), torch.tensor([5.0, 1.0])
    (found,) = perturbation([w], [g], 0.1, adaptive=True) or [w]
    torch.testing.assert_close(found, torch.tensor([0.0, 0.2]))


@pytest.mark.parametrize("bad", [0.0, torch.inf, torch.nan])
def test_what_vanishes_or_is_not_finite_has_no_perturbation(bad: float) -> None:
    w = torch.ones(3)
    g = torch.tensor([bad, 0.0, 0.0])
    assert perturbation([w, w], [g, torch.zeros(3)], 0.1) is None
    assert perturbation([w, w], [g, torch.zeros(3)], 0.1, adaptive=True) is None


# What a step leaves alone


@pytest.mark.parametrize(
    "make", [lambda: FlatRegions(Linear(), 0.7), lambda: FlatRegions("equal", 0.7), lambda: SAM("equal", 0.7)]
)
def test_weights_end_with_their_bits_even_when_a_pass_fails(make: Make) -> None:
    net, balancer = Net(), make()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    places = {name: p.data_ptr() for name, p in net.named_parameters()}
    net.step(balancer)
    calls = 0

    def evaluate() -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert not torch.equal(net.get_parameter("shared.0.weight"), before["shared.0.weight"])
            raise ZeroDivisionError
        return net.losses(*net.batch())

    with pytest.raises(ZeroDivisionError):
        balancer.step([evaluate], list(net.shared.parameters()), torch.Tensor.backward)
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) and p.data_ptr() == places[name], name


def test_a_task_moves_the_shared_parameters_and_its_own_from_where_they_were() -> None:
    net, looks = Net(), []
    before = {name: p.detach().clone() for name, p in net.named_parameters()}

    def evaluate() -> dict[str, Tensor]:
        looks.append({name for name, p in net.named_parameters() if not torch.equal(p, before[name])})
        lengths.append(torch.cat([(p - before[name]).flatten() for name, p in net.named_parameters()]).norm().item())
        return net.losses(*net.batch())

    lengths: list[float] = []
    balancer = FlatRegions(Linear(), 0.4)
    balancer.prepare(list(net.heads))
    balancer.step([evaluate], list(net.shared.parameters()), torch.Tensor.backward)
    shared = {"shared.0.weight", "shared.0.bias"}
    assert looks == [set(), *(shared | {f"heads.{k}.weight", f"heads.{k}.bias"} for k in "abc")]
    assert lengths == pytest.approx([0, 0.4, 0.4, 0.4])


def norms() -> list[nn.Module]:
    return [nn.BatchNorm1d(4), nn.BatchNorm1d(4, momentum=None), nn.BatchNorm1d(4, track_running_stats=False)]


@pytest.mark.parametrize(
    "make", [lambda: FlatRegions(Linear(), 0.7), lambda: FlatRegions("equal", 0.7), lambda: SAM("equal", 0.7)]
)
@pytest.mark.parametrize("kind", range(3))
def test_running_statistics_move_once(make: Make, kind: int) -> None:
    net, plain = Net(middle=[norms()[kind]]), Net(middle=[norms()[kind]])
    for seed in range(3):
        net.step(make(), net.batch(seed))
        plain.losses(*plain.batch(seed))
    for name, value in plain.named_buffers():
        assert torch.equal(dict(net.named_buffers())[name], value), name
    # and each look is at the batch's own statistics, as in training
    again = plain.step(make())
    same(net.step(make()), again)


def test_statistics_of_images_stay_too_and_also_those_of_other_threads() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    elsewhere = nn.BatchNorm1d(2)
    layers(torch.randn(4, 1, 6, 6))
    before = {name: value.clone() for name, value in layers.named_buffers()}
    with frozen_statistics():
        first = layers(torch.randn(4, 1, 6, 6)).sum()
        layers(torch.randn(4, 1, 6, 6))
        thread = threading.Thread(target=lambda: elsewhere(torch.randn(8, 2) + 5))
        thread.start()
        thread.join()
        first.backward()
    for name, value in layers.named_buffers():
        assert torch.equal(value, before[name]), name
    assert int(elsewhere.get_buffer("num_batches_tracked")) == 1 and bool((elsewhere.get_buffer("running_mean") > 0).all())
    layers(torch.randn(4, 1, 6, 6))  # and outside the block they move as ever
    assert not torch.equal(layers.get_buffer("1.running_mean"), before["1.running_mean"])


@pytest.mark.parametrize("make", [lambda: FlatRegions(Linear(), 1e-9), lambda: SAM(Linear(), 1e-9)])
def test_random_layers_are_the_same_in_all_looks(make: Make) -> None:
    """With a radius of nothing, what differs could only be the masks; and the generator ends where one pass leaves it."""
    net = Net(middle=[nn.Dropout(0.5)])
    torch.manual_seed(3)
    plain = net.step(Linear(), net.batch(0), net.batch(1))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    same(net.step(make(), net.batch(0), net.batch(1)), plain, rtol=1e-6, atol=1e-7)
    assert torch.equal(torch.get_rng_state(), state)


def test_losses_computed_before_can_be_differentiated_after() -> None:
    w = nn.Parameter(torch.ones(3))
    loss = w.square().sum()
    with moved([w], [torch.ones(3)]):
        assert w.tolist() == [2, 2, 2]
    torch.autograd.backward(loss)
    assert w.grad is not None and w.grad.tolist() == [2, 2, 2]


def test_parameters_are_found_through_the_graph() -> None:
    net = Net()
    losses = net.losses(*net.batch())
    net.heads["b"].bias.requires_grad_(False)
    assert set(reached(losses["a"])) == {*net.shared.parameters(), *net.heads["a"].parameters()}
    assert reached(losses["a"].detach()) == []


# Tasks that are absent, vanish or overflow


@pytest.mark.parametrize("make", [lambda: FlatRegions(Linear()), lambda: FlatRegions("equal"), lambda: SAM()])
def test_absent_tasks_and_empty_batches(make: Make) -> None:
    net = Net()
    x, targets = net.batch()
    some = net.step(make(), (x, {"a": targets["a"]}), (x, {}))
    assert not any(name.startswith(("heads.b", "heads.c")) for name in some)
    assert net.step(make(), (x, {})) == {}


def test_a_task_whose_gradient_vanishes_is_not_moved_and_counts_as_zero() -> None:
    net, looks = Net(), 0
    x, targets = net.batch()

    def evaluate() -> dict[str, Tensor]:
        nonlocal looks
        looks += 1
        losses = net.losses(x, targets)
        return losses | {"b": losses["b"] * 0}

    for inner in (Linear(), "equal"):
        net.zero_grad()
        looks = 0
        balancer = FlatRegions(inner, 0.2)
        balancer.prepare(["a", "b", "c"])
        balancer.step([evaluate], list(net.shared.parameters()), torch.Tensor.backward)
        assert looks == 3  # as they are, and for a and c
        weights = {"a": 1, "c": 3} if isinstance(inner, Linear) else {"a": 1, "c": 1}
        expected = sum(w * net.by_hand(task, 0.2)["shared.0.weight"] for task, w in weights.items())
        torch.testing.assert_close(net.get_parameter("shared.0.weight").grad, expected)
        left = net.get_parameter("heads.b.weight").grad
        assert left is not None and not left.any()


class Cliff(nn.Module):
    """A loss that is finite where the weight is, and overflows a little above."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0]))

    def losses(self) -> dict[str, Tensor]:
        steep = torch.where(self.w > 1.01, torch.exp(self.w * 1000), self.w)
        return {"a": steep.sum(), "b": self.w.square().sum()}


@pytest.mark.parametrize(
    "make", [lambda: FlatRegions(Linear(), 0.1), lambda: FlatRegions("equal", 0.1), lambda: SAM("equal", 0.1)]
)
def test_an_overflow_at_the_perturbed_weights_reaches_the_loss_scaler(make: Make) -> None:
    cliff, balancer = Cliff(), make()
    balancer.prepare(["a", "b"])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    optimizer = torch.optim.SGD(cliff.parameters(), lr=0.1)
    balancer.step([cliff.losses], [cliff.w], lambda loss: torch.autograd.backward(scaler.scale(loss)))
    assert cliff.w.item() == 1.0 and cliff.w.grad is not None and not cliff.w.grad.isfinite().any()
    scaler.step(optimizer)
    scaler.update()
    assert cliff.w.item() == 1.0 and scaler.get_scale() == 2.0**9


class Blind(JacobianAggregator):
    """Leaves out what is not finite, and so would hide an overflow."""

    def aggregate(self, jacobian: Tensor, losses: Mapping[str, float], block: int) -> Tensor:
        return jacobian.nan_to_num(0, 0, 0).sum(0)


def test_a_balancer_is_not_asked_about_an_overflow_that_it_could_hide() -> None:
    cliff, balancer = Cliff(), FlatRegions(Blind(), 0.1)
    balancer.prepare(["a", "b"])
    balancer.step([cliff.losses], [cliff.w], torch.Tensor.backward)
    assert cliff.w.grad is not None and not cliff.w.grad.isfinite().any()


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("inner", [Linear, CAGrad, lambda: "equal"])
def test_an_overflow_of_the_scaled_loss_reaches_the_loss_scaler_too(
    inner: Callable[[], Balancer | str], split: bool
) -> None:
    net = Net().float()
    x, targets = net.batch()
    batch = x.float(), {name: y.float() for name, y in targets.items()}
    found = net.step(FlatRegions(inner(), 0.1, split=split), batch, scale=1e39)
    assert not all(bool(g.isfinite().all()) for g in found.values())


@pytest.mark.parametrize(
    "make", [lambda: FlatRegions(CAGrad(), 0.3), lambda: FlatRegions("uncertainty", 0.3), lambda: SAM("mgda", 0.3)]
)
def test_a_loss_scale_scales_the_step_and_changes_nothing_else(make: Make) -> None:
    net = Net()
    plain, scaled = net.step(make()), net.step(make(), scale=2.0**16)
    same({name: g / 2**16 for name, g in scaled.items()}, plain)


# Learned weights, several batches, several processes


def test_a_loss_weighting_learns_as_without_the_wrapper() -> None:
    net, inner, plain = Net(), Uncertainty(), Uncertainty()
    net.step(plain)
    net.step(FlatRegions(inner, 0.3))
    assert inner.log_variance.grad is not None
    torch.testing.assert_close(inner.log_variance.grad, plain.log_variance.grad)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlatRegions(CAGrad(), 0.3),
        lambda: FlatRegions("equal", 0.3),
        lambda: FlatRegions("uncertainty", 0.3),
        lambda: SAM("mgda", 0.3),
    ],
)
def test_two_half_batches_are_one_batch(make: Make) -> None:
    net = Net()
    x, targets = net.batch()
    halves = [(x[part], {name: y[part] for name, y in targets.items()}) for part in (slice(0, 6), slice(6, 12))]
    whole, one, two = net.step(make()), make(), make()
    same(net.step(two, *halves, scale=0.5), whole)
    net.step(one)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def parts(net: Net, where: Mapping[str, slice]) -> dict[str, Tensor]:
    """The losses of a part of the batch for each task; the one of task c, which half of the rows have, in full."""
    x, targets = net.batch()
    return {name: net.losses(x[rows], {name: targets[name][rows]})[name] for name, rows in where.items()}


def one_of_two(rank: int, folder: str) -> None:
    """Task c is in the second process alone, where its mean counts twice as the first adds nothing."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    rows = slice(6 * rank, 6 * rank + 6)
    where = {"c": rows, "a": rows, "b": rows} if rank else {"a": rows, "b": rows}

    def evaluate(net: Net) -> dict[str, Tensor]:
        return {name: loss * (2 if name == "c" else 1) for name, loss in parts(net, where).items()}

    for number, make in enumerate(SEVERAL):
        net, balancer = Net(), make()
        balancer.prepare(["a", "b", "c"])
        balancer.step([partial(evaluate, net)], list(net.shared.parameters()), torch.Tensor.backward, dist.group.WORLD)
        shared = set(net.shared.parameters()) if balancer.joins else set()
        for p in net.parameters():
            if p not in shared:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)
                p.grad /= 2
        torch.save([p.grad for p in net.parameters()], f"{folder}/{rank}-{number}.pt")
    dist.destroy_process_group()


SEVERAL: list[Make] = [
    lambda: FlatRegions(Linear(), 0.3),
    lambda: FlatRegions(CAGrad(), 0.3, norm="separate", rho_own=0.1),
    lambda: FlatRegions("equal", 1.0, adaptive=True),
    lambda: FlatRegions("equal", 0.3, adaptive=True, norm="separate"),
    lambda: SAM("equal", 0.3),
    lambda: SAM("equal", 0.5, adaptive=True),
]


def test_two_processes_are_one(tmp_path: Path) -> None:
    spawn(one_of_two, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    for number, make in enumerate(SEVERAL):
        net, balancer = Net(), make()
        balancer.prepare(["a", "b", "c"])
        where = {"a": slice(0, 12), "b": slice(0, 12), "c": slice(6, 12)}
        balancer.step([partial(parts, net, where)], list(net.shared.parameters()), torch.Tensor.backward)
        for rank in range(2):
            for p, found in zip(net.parameters(), torch.load(tmp_path / f"{rank}-{number}.pt"), strict=True):
                torch.testing.assert_close(found, p.grad, rtol=1e-9, atol=1e-12)


# Settings


def test_radii_of_their_own_kind() -> None:
    assert (FlatRegions().rho, FlatRegions(adaptive=True).rho) == (0.05, 2.0)
    assert (SAM().rho, SAM(adaptive=True).rho) == (0.05, 0.5)
    assert FlatRegions(rho=0.3, norm="separate").rho_own == 0.3


def test_scale_is_the_inner_balancers() -> None:
    assert FlatRegions("equal").scale == "sum" and FlatRegions(CAGrad()).scale == SAM(CAGrad()).scale == "mean"


@pytest.mark.parametrize("rho", [-0.1, torch.inf, torch.nan])
def test_radii_that_are_none_are_refused(rho: float) -> None:
    for make in (lambda: FlatRegions(rho=rho), lambda: SAM(rho=rho), lambda: FlatRegions(norm="separate", rho_own=rho)):
        with pytest.raises(InputError, match="expected a finite number >= 0"):
            make()


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="FlatRegions takes steps of its own"):
        FlatRegions(FlatRegions())
    with pytest.raises(InputError, match="Estimated takes steps of its own"):
        FlatRegions(Estimated("mgda", "representation"))
    with pytest.raises(InputError, match="expected one of 'joint', 'separate'"):
        FlatRegions(norm="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pass norm='separate'"):
        FlatRegions(rho_own=0.1)
    for balancer in (FlatRegions(), SAM()):
        with pytest.raises(InputError, match="from other weights too"):
            balancer.backward({"a": torch.ones((), requires_grad=True)}, [], torch.Tensor.backward)


def test_what_remembers_does_so_once_for_each_part() -> None:
    modo = pytest.importorskip("polytask.balance.modo")
    balancer = FlatRegions(modo.MoDo(gamma=0.1), 0.5)
    Net().step(balancer)
    held = [value for name, value in balancer.state_dict().items() if name.endswith("held")]
    assert len(held) == 2 and not torch.equal(*held)


def test_fit_takes_them_with_batches_that_add_up() -> None:
    data = pt.multidigits(tasks=("left", "ink"), size=200)
    seen: list[float] = []
    for balance in ("flat", FlatRegions("mgda", adaptive=True, rho=0.5), "asam"):
        torch.manual_seed(0)
        model = pt.Model(data.encoder(), data.tasks)
        fitted = pt.fit(model, data.train, data.validation, steps=12, batch_size=64, accumulate=2, balance=balance, lr=3e-3)
        statistics = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
        seen += [float(b) for b in statistics]
        assert fitted.history[-1]["loss"]["left"] < fitted.history[0]["loss"]["left"]
    assert set(seen) <= {2.0 * step for step in range(1, 13)}
