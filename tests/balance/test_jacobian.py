"""Balancers that need the task gradients themselves, or remember them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
import torchjd.aggregation as peer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from polytask.balance import GradientBalancer, TaskGradients, db_mtl, graddrop, trimmed_mean
from polytask.balance.db_mtl import DBMTL
from polytask.balance.graddrop import GradDrop
from polytask.balance.moco import MoCo
from polytask.balance.trimmed_mean import TrimmedMean
from polytask.errors import InputError
from polytask.testing import check_balancer

MAKERS: dict[str, Callable[[], GradientBalancer]] = {
    "graddrop": GradDrop,
    "trimmed_mean": TrimmedMean,
    "untrimmed mean": lambda: TrimmedMean(0),
    "median": lambda: TrimmedMean(9),
    "moco": MoCo,
    "moco without decay": lambda: MoCo(beta=1, decay=0, rho=0.1),
    "db_mtl": DBMTL,
    "db_mtl that forgets": lambda: DBMTL(decay=0.5),
    "db_mtl without memory": lambda: DBMTL(beta=0),
}
NAMES = ("a", "b", "c")


class Problem:
    """Three losses, two of them at odds, on a linear layer and a vector; a head for each."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.shared = nn.Linear(4, 3).double()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.heads = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def parameters(self) -> list[nn.Parameter]:
        return [*self.shared.parameters(), self.scale]

    def losses(self, step: int, names: Sequence[str] = NAMES, rows: slice = slice(None)) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=generator, dtype=torch.float64)[rows]
        y = torch.randn(8, 3, generator=generator, dtype=torch.float64)[rows]
        features = self.shared(x).tanh() * self.scale
        each = (features @ self.heads.T - y * torch.tensor([1.0, 3.0, -3.0])).square().mean(0)
        return {name: each[NAMES.index(name)] for name in names}

    def jacobian(self, losses: dict[str, Tensor]) -> Tensor:
        rows = [torch.autograd.grad(loss, self.parameters(), retain_graph=True) for loss in losses.values()]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

    def step(
        self,
        balancer: GradientBalancer,
        losses: dict[str, Tensor],
        backward: Callable[[Tensor], None] = Tensor.backward,  # type: ignore[assignment]
    ) -> Tensor:
        for p in (*self.parameters(), self.heads):
            p.grad = None
        balancer.backward(losses, self.parameters(), backward)
        return self.found()

    def found(self) -> Tensor:
        grads = [p.grad for p in self.parameters()]
        return torch.cat([g.flatten() for g in grads if g is not None])


def prepared(make: Callable[[], GradientBalancer]) -> GradientBalancer:
    balancer = make()
    balancer.prepare(NAMES)
    return balancer


jacobians = st.builds(
    lambda seed, tasks, size: torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
    st.integers(0, 2**31),
    st.integers(1, 8),
    st.integers(1, 20),
)


@pytest.mark.parametrize("name", MAKERS)
def test_each_keeps_the_contract(name: str) -> None:
    check_balancer(MAKERS[name])


@pytest.mark.parametrize("name", MAKERS)
def test_a_constant_factor_of_backward_is_that_of_the_step_and_of_nothing_remembered(name: str) -> None:
    plain, scaled, problem = prepared(MAKERS[name]), prepared(MAKERS[name]), Problem()
    for step in range(4):
        torch.manual_seed(step)
        expected = problem.step(plain, problem.losses(step))
        torch.manual_seed(step)
        found = problem.step(scaled, problem.losses(step), lambda loss: (1024 * loss).backward())  # type: ignore[no-untyped-call]
        torch.testing.assert_close(found, 1024 * expected)


@pytest.mark.parametrize("name", [name for name in MAKERS if "db_mtl" not in name])
def test_several_batches_are_one(name: str) -> None:
    whole, parts, problem = prepared(MAKERS[name]), prepared(MAKERS[name]), Problem()
    for step in range(3):
        torch.manual_seed(step)
        expected = problem.step(whole, problem.losses(step))
        for p in problem.parameters():
            p.grad = None
        torch.manual_seed(step)
        batches = [lambda rows=rows, step=step: problem.losses(step, rows=rows) for rows in (slice(0, 4), slice(4, 8))]
        parts.step(batches, problem.parameters(), lambda loss: (loss / 2).backward())  # type: ignore[no-untyped-call]
        torch.testing.assert_close(problem.found(), expected)


# GradDrop


@given(jacobians, st.integers(0, 2**31))
def test_graddrop_is_that_of_torchjd(jacobian: Tensor, seed: int) -> None:
    leak = torch.rand(len(jacobian), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.manual_seed(seed)
    expected = peer.GradDrop(leak=leak)(jacobian)
    torch.manual_seed(seed)
    torch.testing.assert_close(graddrop.aggregate(jacobian, torch.rand_like(jacobian[0]), leak), expected)


@given(jacobians, st.floats(0, 1, exclude_max=True))
def test_graddrop_steps_along_one_sign_in_each_coordinate(jacobian: Tensor, draw: float) -> None:
    count = len(jacobian)
    step = graddrop.aggregate(jacobian, torch.full_like(jacobian[0], draw), torch.zeros(count))
    positive, negative = jacobian.clamp(min=0).sum(0), jacobian.clamp(max=0).sum(0)
    expected = torch.where(draw < positive / (positive - negative), positive, negative)
    torch.testing.assert_close(step, expected)
    everything = graddrop.aggregate(jacobian, torch.full_like(jacobian[0], draw), torch.ones(count))
    torch.testing.assert_close(everything, jacobian.sum(0))


def test_graddrop_draws_the_positive_sign_as_often_as_it_should() -> None:
    jacobian = torch.tensor([[3.0], [-1.0]]).expand(2, 100_000)
    torch.manual_seed(0)
    step = graddrop.aggregate(jacobian, torch.rand(100_000), torch.zeros(2))
    assert set(step.tolist()) == {3.0, -1.0}
    assert float((step == 3).double().mean()) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 1e-30, -1e30])
@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-24])
def test_graddrop_of_tasks_that_agree_is_the_sum_at_any_draw(value: float, draw: float) -> None:
    jacobian = torch.full((3, 2), value)
    step = graddrop.aggregate(jacobian, torch.full((2,), draw), torch.zeros(3))
    torch.testing.assert_close(step, jacobian.sum(0), rtol=1e-6, atol=0)


def test_graddrop_does_not_hide_an_overflow() -> None:
    for bad in (float("inf"), -float("inf"), float("nan")):
        for draw in (0.0, 0.999):
            jacobian = torch.tensor([[bad], [1.0]])
            assert not bool(graddrop.aggregate(jacobian, torch.tensor([draw]), torch.zeros(2)).isfinite().any())


def test_graddrop_leaks_by_name() -> None:
    balancer = prepared(lambda: GradDrop({"b": 1.0}))
    assert isinstance(balancer, GradDrop)
    jacobian = torch.tensor([[-5.0], [2.0]])  # c, b
    for seed in range(20):
        torch.manual_seed(seed)
        assert float(balancer.aggregate(jacobian, {"c": 1.0, "b": 1.0}, 0)) in (2.0, -3.0)
    with pytest.raises(InputError, match=r"leak 1\.5 for task 'b': expected a number from 0 to 1"):
        GradDrop({"b": 1.5})
    with pytest.raises(InputError, match="leak names an unknown task 'bb'"):
        GradDrop({"bb": 0.5}).prepare(["b", "c"])


# Trimmed mean


@given(jacobians, st.integers(0, 3))
def test_trimmed_mean_is_that_of_torchjd(jacobian: Tensor, trim: int) -> None:
    if 2 * trim < len(jacobian):
        torch.testing.assert_close(trimmed_mean.aggregate(jacobian, trim), peer.TrimmedMean(trim)(jacobian))


@given(jacobians)
def test_trimmed_mean_with_too_few_tasks_is_the_median(jacobian: Tensor) -> None:
    middle = jacobian.quantile(0.5, dim=0)
    torch.testing.assert_close(trimmed_mean.aggregate(jacobian, 9), middle)
    if len(jacobian) < 3:
        torch.testing.assert_close(trimmed_mean.aggregate(jacobian, 1), jacobian.mean(0))


@given(jacobians, st.sampled_from([1e30, -1e30, float("inf"), float("nan")]), st.data())
def test_trimmed_mean_is_out_of_reach_of_one_task(jacobian: Tensor, bad: float, data: st.DataObject) -> None:
    if len(jacobian) >= 3:
        task = data.draw(st.integers(0, len(jacobian) - 1))
        others = jacobian[[k for k in range(len(jacobian)) if k != task]].clone()
        jacobian[task] = bad
        step = trimmed_mean.aggregate(jacobian, 1)
        assert bool((step >= others.amin(0) - 1e-12).all()) and bool((step <= others.amax(0) + 1e-12).all())


def test_trimmed_mean_in_half_precision_is_that_in_single() -> None:
    jacobian = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = trimmed_mean.aggregate(jacobian.float(), 2)
    torch.testing.assert_close(trimmed_mean.aggregate(jacobian, 2), expected.bfloat16(), rtol=2e-2, atol=1e-2)


def test_trimmed_mean_refuses_less_than_nothing() -> None:
    with pytest.raises(InputError, match="trim -1: expected a number of tasks >= 0"):
        TrimmedMean(-1)


# MoCo


def nearest_on_simplex(values: Tensor) -> Tensor:
    """By bisection on the level that is taken off."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (values - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (values - low).clamp(min=0)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_moco_follows_its_equations_on_the_gradients(decay: float) -> None:
    balancer, problem = prepared(lambda: MoCo(beta=0.6, gamma=0.02, rho=0.1, decay=decay)), Problem()
    y: Tensor | None = None
    mass = 0.0
    w = torch.full((3,), 1 / 3, dtype=torch.float64)
    for t in range(1, 7):
        losses = problem.losses(t)
        jacobian = problem.jacobian(losses)
        y = torch.zeros_like(jacobian) if y is None else y
        y = y - 0.6 * t**-decay * (y - jacobian)
        mass = mass - 0.6 * t**-decay * (mass - 1)
        mean = y / mass
        w = nearest_on_simplex(w - 0.02 * t**-decay * (mean @ mean.T @ w + 0.1 * w))
        torch.testing.assert_close(problem.step(balancer, losses), w @ mean)


def test_moco_that_tracks_at_once_is_modo() -> None:
    balancer, problem = prepared(lambda: MoCo(beta=1, gamma=0.05, rho=0.1, decay=0)), Problem()
    weighting = peer.MoDoWeighting(gamma=0.05, rho=0.1)
    for step in range(5):
        losses = problem.losses(step)
        jacobian = problem.jacobian(losses)
        torch.testing.assert_close(problem.step(balancer, losses), weighting(jacobian @ jacobian.T) @ jacobian)


def test_moco_is_less_noisy_than_the_batches() -> None:
    """The tracked gradients of one point come near the mean over many batches."""
    balancer, problem = prepared(lambda: MoCo(gamma=1e-9)), Problem()
    jacobians_ = [problem.jacobian(problem.losses(step)) for step in range(300)]
    mean = torch.stack(jacobians_).mean(0).mean(0)
    last = torch.zeros_like(mean)
    for step in range(300):
        last = problem.step(balancer, problem.losses(step))
    assert float((last - mean).norm()) < 0.4 * float((jacobians_[-1].mean(0) - mean).norm())


# DB-MTL


@pytest.mark.parametrize(("beta", "decay"), [(0.9, 0.0), (0.5, 0.5), (0.0, 0.0)])
def test_db_mtl_follows_its_equations_on_the_gradients(beta: float, decay: float) -> None:
    balancer, problem = prepared(lambda: DBMTL(beta, decay)), Problem()
    y: Tensor | None = None
    mass = 0.0
    for t in range(1, 7):
        losses = problem.losses(t)
        logarithms = problem.jacobian({name: loss.log() for name, loss in losses.items()})
        y = torch.zeros_like(logarithms) if y is None else y
        rate = beta / t**decay
        y = rate * y + (1 - rate) * logarithms
        mass = rate * mass + (1 - rate)
        norms = y.norm(dim=1)
        expected = (norms.max() / norms) @ y / mass
        torch.testing.assert_close(problem.step(balancer, losses), expected, rtol=1e-6, atol=1e-7)
        heads = torch.autograd.grad(sum(loss.log() for loss in losses.values()), problem.heads)[0]  # type: ignore[arg-type]
        assert problem.heads.grad is not None
        torch.testing.assert_close(problem.heads.grad, heads, rtol=1e-6, atol=1e-7)


def test_db_mtl_of_several_batches_takes_the_mean_of_their_logarithms() -> None:
    balancer, problem = prepared(DBMTL), Problem()
    parts = [problem.losses(0, rows=rows) for rows in (slice(0, 2), slice(2, 8))]
    balancer.step([lambda part=part: part for part in parts], problem.parameters(), lambda loss: (loss / 2).backward())
    y = sum(problem.jacobian({name: loss.log() for name, loss in part.items()}) for part in parts) / 2
    assert isinstance(y, Tensor)
    norms = y.norm(dim=1)
    torch.testing.assert_close(problem.found(), (norms.max() / norms) @ y, rtol=1e-6, atol=1e-7)


def test_db_mtl_does_not_see_the_unit_of_a_loss() -> None:
    plain, scaled, problem = prepared(DBMTL), prepared(DBMTL), Problem()
    for step in range(3):
        losses = problem.losses(step)
        expected = problem.step(plain, losses)
        other = {"a": losses["a"] * 1e3, "b": losses["b"], "c": losses["c"] * 1e-2}
        torch.testing.assert_close(problem.step(scaled, other), expected, rtol=1e-5, atol=1e-7)


def test_db_mtl_without_memory_holds_nothing() -> None:
    balancer, problem = prepared(lambda: DBMTL(beta=0)), Problem()
    problem.step(balancer, problem.losses(0))
    assert not any("memory" in name for name in balancer.state_dict())
    assert not balancer.holds


def test_db_mtl_refuses_losses_without_a_logarithm_and_takes_zero() -> None:
    balancer, problem = prepared(DBMTL), Problem()
    losses = problem.losses(0)
    with pytest.raises(InputError, match="the loss of task 'b' has no logarithm"):
        problem.step(balancer, {"a": losses["a"], "b": -losses["b"]})
    assert bool(problem.step(balancer, {"a": losses["a"], "b": losses["b"] * 0}).isfinite().all())


def test_db_mtl_weights_bring_gradients_to_the_length_of_the_longest() -> None:
    gramian = torch.diag(torch.tensor([4.0, 0.0, 1e-30, 1e30], dtype=torch.float64))
    weights = db_mtl.weights(gramian)
    torch.testing.assert_close(weights.square() * gramian.diagonal(), torch.tensor([1.0, 0, 1, 1]).double() * 1e30)


# What both remember


@pytest.mark.parametrize("make", [MoCo, DBMTL])
def test_tasks_that_are_absent_keep_what_is_tracked_of_them(make: Callable[[], GradientBalancer]) -> None:
    balancer, problem = prepared(make), Problem()
    problem.step(balancer, problem.losses(0))
    before = {name: value.clone() for name, value in balancer.state_dict().items() if "block" in name}
    problem.step(balancer, problem.losses(1, ("c", "a")))
    for name, value in before.items():
        after = balancer.state_dict()[name]
        assert (
            torch.equal(after[1], value[1]) and not torch.equal(after[0], value[0]) and not torch.equal(after[2], value[2])
        )


@pytest.mark.parametrize("make", [MoCo, DBMTL])
def test_an_overflow_is_written_and_not_remembered(make: Callable[[], GradientBalancer]) -> None:
    balancer, problem = prepared(make), Problem()
    problem.step(balancer, problem.losses(0))
    before = copy.deepcopy(balancer.state_dict())
    losses = problem.losses(1)
    step = problem.step(balancer, {**losses, "b": losses["b"] * float("inf")})
    assert not bool(step.isfinite().all())
    for name, value in balancer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("make", [MoCo, DBMTL])
def test_a_state_replaces_what_was_remembered(make: Callable[[], GradientBalancer]) -> None:
    problem, used, fresh = Problem(), prepared(make), prepared(make)
    for step in range(3):
        problem.step(used, problem.losses(step))
    problem.step(fresh, problem.losses(7))
    fresh.load_state_dict(prepared(make).state_dict())  # of before the first step
    first = problem.step(prepared(make), problem.losses(3))
    torch.testing.assert_close(problem.step(fresh, problem.losses(3)), first)
    fresh.load_state_dict(used.state_dict())
    torch.testing.assert_close(problem.step(fresh, problem.losses(3)), problem.step(used, problem.losses(3)))
    assert all(v.data_ptr() != used.state_dict()[k].data_ptr() for k, v in fresh.state_dict().items())


@pytest.mark.parametrize("make", [MoCo, DBMTL])
def test_what_tracks_needs_the_names_of_the_tasks_and_takes_a_step_of_none(make: Callable[[], GradientBalancer]) -> None:
    with pytest.raises(InputError, match="attribute 'tasks'"):
        make().prepare([])
    balancer = prepared(make)
    balancer.settle(TaskGradients(Problem().parameters(), hold=True))
    assert int(balancer.state_dict()["steps"]) == 0


def test_half_precision_is_tracked_in_single() -> None:
    """A running mean that moves by a thousandth in each step would stand still in half precision."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    balancer = prepared(lambda: MoCo(beta=1e-3, decay=0))
    for step in range(100):
        slope = torch.tensor([1.0, 2, 3]).bfloat16() * (1 if step == 0 else 2)
        weight.grad = None
        balancer.backward({name: (weight * slope).sum() for name in NAMES}, [weight], Tensor.backward)  # type: ignore[arg-type]
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    tracked = balancer.state_dict()["memory.block0"]
    assert tracked.dtype == torch.float32
    first = 1e-3 * 0.999**99 / (1 - 0.999**100)  # what the first gradient weighs in the mean
    torch.testing.assert_close(tracked[0], (2 - first) * torch.tensor([1.0, 2, 3]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MoCo(beta=0), "beta 0: expected a number > 0, up to 1"),
        (lambda: MoCo(gamma=0), "gamma 0: expected a finite number > 0"),
        (lambda: MoCo(rho=-1), "rho -1: expected a finite number >= 0"),
        (lambda: MoCo(decay=float("inf")), "decay inf: expected a finite number >= 0"),
        (lambda: DBMTL(beta=1), "beta 1: expected a number from 0 to below 1"),
        (lambda: DBMTL(decay=-1), "decay -1: expected a finite number >= 0"),
    ],
)
def test_settings_that_are_none_are_refused(make: Callable[[], GradientBalancer], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
