"""Loss weightings: closed forms, equality with torchjd and with authors' equations, absent tasks, what they learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torchjd.aggregation
import torchjd.scalarization
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polytask.balance import Balancer, Uncertainty, dwa, famo, gradnorm, stch
from polytask.balance._per_task import Learned
from polytask.balance.db_mtl_loss import LogLosses
from polytask.balance.dwa import DWA
from polytask.balance.excess import ExcessMTL
from polytask.balance.famo import FAMO
from polytask.balance.gls import GLS
from polytask.balance.gradnorm import GradNorm
from polytask.balance.imtl_l import IMTLL
from polytask.balance.rlw import RLW
from polytask.balance.stch import STCH
from polytask.errors import InputError, TrainingError
from polytask.testing import check_balancer

METHODS: list[Callable[[], Balancer]] = [
    DWA, lambda: DWA(window=2), RLW, GLS, GradNorm, IMTLL, FAMO, STCH, lambda: STCH(warmup=1, window=2), ExcessMTL,
    LogLosses,
]  # fmt: skip
LOGARITHMIC: list[Callable[[], Any]] = [GLS, LogLosses, FAMO, STCH]
values = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


def prepared(balancer: Any, tasks: Sequence[str] | int) -> Any:
    balancer.prepare([str(i) for i in range(tasks)] if isinstance(tasks, int) else tasks)
    return balancer


def step(balancer: Balancer, losses: Sequence[float] | Mapping[str, float]) -> Tensor:
    """The weights that the balancer puts on the gradients of losses with these values, in their order."""
    named = losses if isinstance(losses, Mapping) else {str(i): v for i, v in enumerate(losses)}
    leaves = [torch.tensor(v, requires_grad=True) for v in named.values()]
    balancer.backward(dict(zip(named, (leaf * 1 for leaf in leaves), strict=True)), [], Tensor.backward)
    return torch.stack([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])


# All


@pytest.mark.parametrize("make", METHODS)
def test_the_contract_of_balancers(make: Callable[[], Balancer]) -> None:
    check_balancer(make)


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("sizes", [(1e-30, 1.0), (1e30, 1.0), (1e30, 1e-30), (0.0, 1.0), (0.0, 0.0), (1e-30, 1e-30)])
def test_losses_of_any_size_give_finite_steps(make: Callable[[], Balancer], sizes: tuple[float, float]) -> None:
    balancer = prepared(make(), 2)
    weight = nn.Parameter(torch.tensor([[0.5, -0.3]]))
    for _ in range(6):
        weight.grad = None
        base = weight.square().sum() + weight.sum() + 1
        losses = {"0": base * sizes[0], "1": (base + weight[0, 0]) * sizes[1]}
        balancer.backward(losses, [weight], Tensor.backward)
        assert weight.grad is not None and bool(weight.grad.isfinite().all())
        assert all(bool(v.isfinite().all()) for v in balancer.buffers() if v.numel() and not _may_be_nan(balancer, v))


def _may_be_nan(balancer: Balancer, buffer: Tensor) -> bool:
    return isinstance(balancer, FAMO) and buffer is balancer.before


@pytest.mark.parametrize("make", [DWA, IMTLL, GradNorm, FAMO, STCH, ExcessMTL])
def test_what_is_kept_for_each_task_needs_their_names(make: Callable[[], Balancer]) -> None:
    with pytest.raises(InputError, match="keeps something of each task: give the model an attribute 'tasks'"):
        make().prepare([])


@pytest.mark.parametrize("make", [RLW, GLS, LogLosses])
def test_what_keeps_nothing_needs_no_names(make: Callable[[], Any]) -> None:
    balancer = prepared(make(), [])
    assert bool(step(balancer, [1.0, 2.0]).isfinite().all())


@pytest.mark.parametrize("make", LOGARITHMIC)
def test_a_loss_below_zero_is_refused_by_name(make: Callable[[], Any]) -> None:
    with pytest.raises(TrainingError, match=r"the loss of task 'b' is -0.5: \w+ takes logarithms"):
        step(prepared(make(), ["a", "b"]), {"a": 1.0, "b": -0.5})


@pytest.mark.parametrize("make", LOGARITHMIC)
def test_a_loss_of_zero_leaves_the_others_their_step(make: Callable[[], Any]) -> None:
    with_zero = step(prepared(make(), 3), [2.0, 0.0, 3.0])
    without = step(prepared(make(), 3), {"0": 2.0, "2": 3.0})
    assert with_zero[1] == 0
    torch.testing.assert_close(with_zero[[0, 2]], without)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DWA(temperature=0), "temperature 0: expected a finite number > 0"),
        (lambda: DWA(window=0), "window 0: expected at least 1"),
        (lambda: GradNorm(alpha=-1), "alpha -1: expected a finite number >= 0"),
        (lambda: GradNorm(lr=math.inf), "lr inf: expected a finite number > 0"),
        (lambda: FAMO(lr=0), "lr 0: expected"),
        (lambda: FAMO(decay=-0.1), "decay -0.1: expected"),
        (lambda: STCH(mu=0), "mu 0: expected"),
        (lambda: STCH(preference={"a": 0}), "preference of task 'a' 0: expected"),
        (lambda: STCH(warmup=-1), "warmup -1, window 100"),
        (lambda: prepared(STCH(reference={"lefd": 1}), ["left"]), "unknown task 'lefd': did you mean 'left'"),
        (lambda: ExcessMTL(step_size=0), "step_size 0: expected"),
        (lambda: ExcessMTL(warmup=0), "warmup 0: expected at least 1"),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


# Closed forms and torchjd


@given(values)
def test_gls_is_the_geometric_mean(losses: list[float]) -> None:
    mean = math.exp(sum(map(math.log, losses)) / len(losses))
    named = {str(i): torch.tensor(v) for i, v in enumerate(losses)}
    assert GLS().combine(named).item() == pytest.approx(mean, rel=1e-4)
    assert torchjd.scalarization.GeometricMean()(torch.tensor(losses)).item() == pytest.approx(mean, rel=1e-4)
    torch.testing.assert_close(step(GLS(), losses), mean / len(losses) / torch.tensor(losses), rtol=1e-4, atol=0)


@given(values, st.floats(1e-2, 1e2))
def test_log_losses_do_not_care_for_the_scale_of_a_loss(losses: list[float], factor: float) -> None:
    torch.testing.assert_close(step(LogLosses(), losses), 1 / torch.tensor(losses))
    scaled = step(LogLosses(), [factor * losses[0], *losses[1:]])
    torch.testing.assert_close(scaled * torch.tensor([factor] + [1] * (len(losses) - 1)), 1 / torch.tensor(losses))


def test_rlw_draws_on_the_simplex_with_equal_means() -> None:
    torch.manual_seed(0)
    drawn = torch.stack([step(RLW(), [1.0, 5.0, 2.0]) for _ in range(2000)])
    torch.testing.assert_close(drawn.sum(1), torch.ones(2000))
    assert bool((drawn > 0).all())
    torch.testing.assert_close(drawn.mean(0), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    torch.manual_seed(7)
    mine = step(RLW(), [1.0, 5.0, 2.0])
    torch.manual_seed(7)
    torch.testing.assert_close(mine, torch.randn(3).softmax(0))
    torch.manual_seed(7)
    theirs = torchjd.scalarization.Random()(torch.tensor([1.0, 5.0, 2.0]))
    assert (mine @ torch.tensor([1.0, 5.0, 2.0])).item() == pytest.approx(theirs.item())


@given(values)
def test_imtl_l_is_uncertainty_doubled_and_least_where_each_scaled_loss_is_one(losses: list[float]) -> None:
    named = {str(i): torch.tensor(v) for i, v in enumerate(losses)}
    balancer, uncertainty = prepared(IMTLL(), len(losses)), prepared(Uncertainty(), len(losses))
    s = torch.linspace(-1, 1, len(losses))
    with torch.no_grad():
        balancer.log_scale.copy_(s)
        uncertainty.log_variance.copy_(-s)
    theirs = torchjd.scalarization.IMTLL(len(losses))
    theirs.log_scale.data.copy_(s)
    assert balancer.combine(named).item() == pytest.approx(theirs(torch.tensor(losses)).item(), rel=1e-4, abs=1e-5)
    doubled = 2 * uncertainty.combine({name: loss / 2 for name, loss in named.items()}).item()
    assert balancer.combine(named).item() == pytest.approx(doubled, rel=1e-4, abs=1e-5)
    with torch.no_grad():
        balancer.log_scale.copy_(-torch.tensor(losses).log())
    total = balancer.combine(named)
    (slope,) = torch.autograd.grad(total, balancer.log_scale)
    torch.testing.assert_close(slope, torch.zeros_like(s), atol=1e-5, rtol=0)


@settings(deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_dwa_with_a_window_of_an_epoch_is_dwa_by_epochs(tasks: int, window: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mine, theirs = prepared(DWA(window=window), tasks), torchjd.scalarization.DWA()
    for _ in range(4):
        for _ in range(window):
            losses = torch.rand(tasks, generator=generator) + 0.1
            named = {str(i): v for i, v in enumerate(losses)}
            torch.testing.assert_close(mine.combine(named), theirs(losses), rtol=1e-4, atol=1e-5)
        theirs.step()


def test_dwa_of_two_tasks_in_numbers() -> None:
    balancer = prepared(DWA(window=1), 2)
    assert step(balancer, [4.0, 4.0]).tolist() == [1, 1]
    assert step(balancer, [1.0, 4.0]).tolist() == [1, 1]
    # Rates 1/4 and 1: the weights are 2 / (1 + exp(+-(1 - 1/4) / 2)).
    slow = 2 / (1 + math.exp(-0.375))
    torch.testing.assert_close(step(balancer, [1.0, 4.0]), torch.tensor([2 - slow, slow]))
    torch.testing.assert_close(dwa.weights(torch.tensor([3.0, 3.0, 3.0]), 2.0), torch.ones(3))


def test_dwa_waits_for_a_task_that_is_seldom_there() -> None:
    balancer = prepared(DWA(window=1), ["a", "b"])
    for loss in (8.0, 4.0, 2.0):
        step(balancer, {"a": loss})
    assert step(balancer, {"b": 1.0}).tolist() == [1]
    weights = step(balancer, {"a": 1.0, "b": 1.0})  # rates 1/2 and, with one window, 1
    slow = 2 / (1 + math.exp(-0.25))
    torch.testing.assert_close(weights, torch.tensor([2 - slow, slow]))


# Smooth Tchebycheff


def warm(balancer: STCH, nadir: Mapping[str, float]) -> STCH:
    prepared(balancer, list(nadir))
    for _ in range(balancer.warmup + balancer.window):
        step(balancer, nadir)
    return balancer


def test_stch_in_its_warm_up_is_the_sum_of_logarithms() -> None:
    balancer = prepared(STCH(warmup=2, window=2), 2)
    for _ in range(4):
        torch.testing.assert_close(step(balancer, [2.0, 4.0]), torch.tensor([0.5, 0.25]))
    # L / nadir = 1/2 and 1: softmax (1/3, 2/3) at mu = 1, times K.
    torch.testing.assert_close(step(balancer, [1.0, 4.0]), 2 * torch.tensor([1 / 3, 2 / 3 / 4]))


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=4), st.floats(0.1, 2))
def test_stch_is_the_smoothed_maximum_of_torchjd(losses: list[float], mu: float) -> None:
    nadir = {str(i): 1.0 + i for i in range(len(losses))}
    balancer = warm(STCH(mu=mu, warmup=0, window=1), nadir)
    named = {str(i): torch.tensor(v) for i, v in enumerate(losses)}
    logs = torch.tensor([math.log(v / nadir[str(i)]) for i, v in enumerate(losses)])
    theirs = torchjd.scalarization.STCH(mu, weights=torch.ones(len(losses)))(logs)
    assert balancer.combine(named).item() == pytest.approx(len(losses) * theirs.item(), rel=1e-4, abs=1e-4)


def test_stch_with_little_smoothing_steps_for_the_worst_task_by_preference_and_reference() -> None:
    nadir = {"a": 2.0, "b": 2.0}
    assert step(warm(STCH(mu=1e-3, warmup=0, window=1), nadir), {"a": 1.0, "b": 1.5})[0] == 0
    preferred = warm(STCH(mu=1e-3, preference={"a": 3.0}, warmup=0, window=1), nadir)
    weights = step(preferred, {"a": 3.0, "b": 3.5})  # 3 log 1.5 > log 1.75
    torch.testing.assert_close(weights, torch.tensor([2 * 3 / 3.0, 0.0]))
    referred = warm(STCH(mu=1e-3, reference={"b": 1.5}, warmup=0, window=1), nadir)
    assert step(referred, {"a": 1.5, "b": 1.8})[0] > 0  # 0.75 of the way for a, 0.6 for b
    assert step(referred, {"a": 1.5, "b": 1.4})[1] == 0  # b has reached it


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6), st.floats(1e-3, 10))
def test_the_smooth_maximum_is_within_mu_log_k_of_the_maximum(numbers: list[float], mu: float) -> None:
    x = torch.tensor(numbers, dtype=torch.float64)
    gap = float(stch.smooth_maximum(x, mu) - x.max())
    assert -1e-9 <= gap <= mu * math.log(len(numbers)) + 1e-9


# Learned weights


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_learned_numbers_are_those_of_adam(decay: float) -> None:
    start = torch.tensor([1.0, -2.0, 3.0])
    learned, parameter = Learned(start, 0.1, decay), nn.Parameter(start.clone())
    adam = torch.optim.Adam([parameter], lr=0.1, weight_decay=decay)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradient = torch.randn(3, generator=generator)
        learned.descend([0, 1, 2], gradient)
        parameter.grad = gradient.clone()
        adam.step()
        torch.testing.assert_close(learned.value, parameter.detach())
    before = learned.value.clone()
    learned.descend([2], torch.tensor([1.0]))
    assert torch.equal(learned.value[:2], before[:2]) and learned.value[2] != before[2]


def test_famo_is_torchjds_whose_update_sees_the_next_losses() -> None:
    mine, theirs = prepared(FAMO(), 3), torchjd.scalarization.FAMO(3)
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        losses = torch.rand(3, generator=generator) + 0.2
        if i:
            theirs.update(losses)
        leaf = losses.clone().requires_grad_()
        (expected,) = torch.autograd.grad(theirs(leaf), leaf)
        found = step(mine, losses.tolist())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert found.sum().item() == pytest.approx(1, rel=1e-4)  # a convex combination


def test_famo_moves_weight_away_from_a_loss_that_falls_fast() -> None:
    balancer = prepared(FAMO(), ["fast", "slow"])
    for i in range(30):
        step(balancer, {"fast": 0.8**i, "slow": 1.0})
    assert balancer.logits.value[0] < balancer.logits.value[1] - 0.5
    kept = balancer.logits.value.clone()
    step(balancer, {"slow": 1.0})
    assert balancer.logits.value[0] == kept[0]


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5), st.data())
def test_famos_slopes_are_those_of_the_softmax(logits: list[float], data: st.DataObject) -> None:
    gains = torch.tensor(data.draw(st.lists(st.floats(-2, 2), min_size=len(logits), max_size=len(logits))))
    w = torch.tensor(logits, requires_grad=True)
    (expected,) = torch.autograd.grad(w.softmax(0) @ gains, w)
    torch.testing.assert_close(famo.slopes(w.detach(), gains), expected, atol=1e-5, rtol=1e-4)


# GradNorm


class Line:
    """Losses that are linear in one shared layer: gradients, and their norms, are given."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.weight = nn.Parameter(torch.zeros(1, rows.shape[1]))
        self.early = nn.Parameter(torch.ones(2, 2))

    def losses(self, levels: Sequence[float]) -> dict[str, Tensor]:
        early = (self.early - self.early.detach()).sum() * 100
        return {
            str(i): row @ self.weight[0] + level + early
            for i, (row, level) in enumerate(zip(self.rows, levels, strict=True))
        }


@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=5),
    st.floats(0, 3),
    st.integers(0, 1000),
)
def test_gradnorms_slopes_are_those_of_its_loss(norms: list[float], alpha: float, seed: int) -> None:
    n = torch.tensor(norms, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    w = (torch.rand(len(n), generator=generator, dtype=torch.float64) + 0.1).requires_grad_()
    ratios = torch.rand(len(n), generator=generator, dtype=torch.float64) + 0.1
    target = ((w * n).mean() * (ratios / ratios.mean()) ** alpha).detach()
    (expected,) = torch.autograd.grad((w * n - target).abs().sum(), w)
    torch.testing.assert_close(gradnorm.slopes(w.detach(), n, ratios, alpha), expected)


def test_gradnorm_brings_gradients_of_the_last_shared_layer_to_one_norm() -> None:
    line = Line(torch.tensor([[10.0, 0.0], [0.0, 1.0], [2.0, 0.0]]))
    balancer = prepared(GradNorm(alpha=0, lr=0.01), 3)
    for _ in range(600):
        balancer.backward(line.losses([1.0, 1.0, 1.0]), [line.early, line.weight], Tensor.backward)
        assert balancer.weights.value.sum().item() == pytest.approx(3, rel=1e-5)
    norms = balancer.weights.value * torch.tensor([10.0, 1.0, 2.0])
    assert float(norms.max() / norms.min()) < 1.3


def test_gradnorm_gives_a_task_that_lags_a_larger_gradient_and_starts_as_the_sum() -> None:
    line = Line(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    balancer = prepared(GradNorm(alpha=1.5), 2)
    balancer.backward(line.losses([1.0, 1.0]), [line.weight], Tensor.backward)
    torch.testing.assert_close(line.weight.grad, torch.ones(1, 2))
    for _ in range(300):
        balancer.backward(line.losses([1.0, 0.2]), [line.weight], Tensor.backward)
    # Targets are in proportion to (1, 0.2)^1.5.
    assert balancer.weights.value[0] > 5 * balancer.weights.value[1]


def test_gradnorm_without_a_shared_layer_keeps_its_weights() -> None:
    balancer = prepared(GradNorm(), 2)
    for _ in range(5):
        assert step(balancer, [1.0, 3.0]).tolist() == [1, 1]


# Excess risk


class Quadratic:
    def __init__(self, tasks: int, size: int = 6) -> None:
        generator = torch.Generator().manual_seed(tasks)
        self.p = nn.Parameter(torch.randn(size, generator=generator))
        self.q = nn.Parameter(torch.randn(3, generator=generator))
        self.centres = torch.randn(tasks, size + 3, generator=generator) * torch.arange(1, tasks + 1)[:, None]

    def losses(self) -> dict[str, Tensor]:
        both = torch.cat([self.p, self.q])
        return {str(i): (both - centre).square().sum() for i, centre in enumerate(self.centres)}


@pytest.mark.parametrize("tasks", [1, 2, 4])
@pytest.mark.parametrize("warmup", [1, 3])
def test_excess_is_torchjds_times_the_number_of_tasks(tasks: int, warmup: int) -> None:
    problem = Quadratic(tasks)
    mine = prepared(ExcessMTL(0.3, warmup), tasks)
    theirs = torchjd.aggregation.ExcessMTL(0.3, warmup)
    shared = [problem.p, problem.q]
    for _ in range(8):
        losses = problem.losses()
        jacobian = torch.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(v, shared, retain_graph=True)]) for v in losses.values()]
        )
        expected = theirs(jacobian) * tasks
        problem.p.grad = problem.q.grad = None
        mine.backward(problem.losses(), shared, Tensor.backward)
        assert problem.p.grad is not None and problem.q.grad is not None
        torch.testing.assert_close(torch.cat([problem.p.grad, problem.q.grad]), expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for p in shared:
                p -= 0.02 * p.grad


def test_excess_risk_takes_weight_from_a_task_that_has_converged_though_its_loss_is_high() -> None:
    p = nn.Parameter(torch.zeros(1))
    balancer = prepared(ExcessMTL(0.5), ["noisy", "learning"])
    for i in range(20):
        noisy = (p - p.detach()).sum() * 0.5**i + 100
        balancer.backward({"noisy": noisy, "learning": p.sum()}, [p], Tensor.backward)
    weights = balancer.log_weights.softmax(0) * 2
    assert weights[1] > 1.5


def test_an_overflow_in_the_gradients_leaves_the_state_as_it_is() -> None:
    p = nn.Parameter(torch.ones(3))
    balancer = prepared(ExcessMTL(), 2)
    balancer.backward({"0": p.sum(), "1": p.square().sum()}, [p], Tensor.backward)
    state = {name: value.clone() for name, value in balancer.named_buffers()}
    squares = [s.clone() for s in balancer.squares]
    balancer.backward({"0": p.sum() * torch.inf, "1": p.square().sum()}, [p], Tensor.backward)
    assert all(torch.equal(state[name], value) for name, value in balancer.named_buffers())
    assert all(torch.equal(a, b) for a, b in zip(squares, balancer.squares, strict=True))
