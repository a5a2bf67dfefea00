"""Methods that solve a problem on the Gramian: their promises, closed forms and peers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchjd import aggregation

from polytask.balance import Balancer, GramianWeighting, cagrad, dualproj, fairgrad, mgda, nash_mtl, sdmgrad, upgrad
from polytask.balance.cagrad import CAGrad
from polytask.balance.dualproj import DualProj
from polytask.balance.fairgrad import FairGrad
from polytask.balance.mgda import MGDA, LossMGDA
from polytask.balance.nash_mtl import NashMTL
from polytask.balance.sdmgrad import SDMGrad
from polytask.balance.upgrad import UPGrad
from polytask.errors import InputError
from polytask.testing import check_balancer

METHODS: dict[str, Callable[[], GramianWeighting]] = {
    "mgda": MGDA,
    "mgda l2": lambda: MGDA(normalise="l2"),
    "mgda loss": lambda: MGDA(normalise="loss"),
    "mgda loss+": lambda: MGDA(normalise="loss+"),
    "mgda of losses": lambda: LossMGDA(),
    "cagrad": CAGrad,
    "cagrad 0": lambda: CAGrad(c=0.9, rescale=0),
    "cagrad 2": lambda: CAGrad(c=1.5, rescale=2),
    "nash": NashMTL,
    "nash 3": lambda: NashMTL(update_every=3, max_norm=0),
    "fairgrad": FairGrad,
    "fairgrad 1/2": lambda: FairGrad(alpha=0.5),
    "upgrad": UPGrad,
    "dualproj": DualProj,
    "sdmgrad": SDMGrad,
}

u = [1.0, 2.0, -1.0]
HARD = {
    "zero": [[0.0] * 3] * 4,
    "tiny": [[1e-15, 0, 0], [-0.5e-15, 1e-15, 0], [0, 0, 1e-15]],
    "huge": [[1e15, 0, 0], [-0.5e15, 1e15, 0], [0, 0, 1e15]],
    "equal": [u] * 5,
    "opposite": [u, [-x for x in u]],
    "opposite, unlike": [[1e4 * x for x in u], [-1e-4 * x for x in u], [1.0, 0, 0]],
    "one zero": [u, [0.0] * 3, [-1.0, 1.0, 3.0]],
    "all but one zero": [[0.0] * 3, u, [0.0] * 3],
    "dependent": [[1.0, 0, 0], [0, 1.0, 0], [-1.0, -1.0, 0], [1.0, 1.0, 0], [0, -1.0, 0]],
    "nearly opposite": [[1.0, 0, 0], [-1.0, 1e-8, 0]],
    "alone": [u],
    "alone and zero": [[0.0] * 3],
}


def gradients(seed: int, tasks: int, decades: float = 0.0, shift: float = 0.0, width: int | None = None) -> Tensor:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((tasks, width or 2 * tasks)) + shift
    return torch.from_numpy(rows * 10 ** rng.uniform(-decades, decades, (tasks, 1)))


def names(tasks: int) -> dict[str, float]:
    return {str(k): 1.0 + k for k in range(tasks)}


def weigh(balancer: GramianWeighting, rows: Tensor) -> Tensor:
    balancer.prepare(list(names(len(rows))))
    return balancer.weigh(rows @ rows.T, names(len(rows)))


any_gradients = st.builds(
    gradients,
    st.integers(0, 2**31),
    st.integers(1, 8),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([None, 3, 6]),
)
tame = st.builds(
    gradients, st.integers(0, 2**31), st.integers(2, 8), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.3])
)


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_the_contract(make: Callable[[], Balancer]) -> None:
    check_balancer(make)


@pytest.mark.parametrize("rows", HARD.values(), ids=HARD)
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_hard_gramians_give_a_finite_step(make: Callable[[], GramianWeighting], rows: list[list[float]]) -> None:
    jacobian = torch.tensor(rows, dtype=torch.float64)
    w = weigh(make(), jacobian)
    assert w.shape == (len(rows),) and bool(w.isfinite().all()) and bool((w >= 0).all())
    assert bool((w @ jacobian).isfinite().all())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_the_scale_of_all_gradients_keeps_the_direction(make: Callable[[], GramianWeighting], scale: float) -> None:
    rows = gradients(3, 5)
    step = weigh(make(), rows) @ rows
    scaled = weigh(make(), rows * scale**0.5) @ rows
    torch.testing.assert_close(scaled / scaled.norm(), step / step.norm(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_the_order_of_tasks_means_nothing(make: Callable[[], GramianWeighting]) -> None:
    rows, order = gradients(5, 6, decades=2), [3, 0, 5, 1, 4, 2]
    balancer = make()
    balancer.prepare(list(names(6)))
    w = balancer.weigh(rows @ rows.T, names(6))
    balancer.prepare(list(names(6)))
    losses = {str(k): 1.0 + k for k in order}
    permuted = balancer.weigh(rows[order] @ rows[order].T, losses)
    torch.testing.assert_close(permuted, w[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["cagrad", "nash", "fairgrad", "upgrad", "dualproj", "sdmgrad", "mgda"])
def test_one_task_alone_steps_along_its_gradient(name: str) -> None:
    rows = torch.tensor([u], dtype=torch.float64)
    assert float(weigh(METHODS[name](), rows)) == pytest.approx(1)


# Promises


@settings(max_examples=200)
@given(any_gradients)
def test_projections_conflict_with_no_task(rows: Tensor) -> None:
    for balancer in (UPGrad(), DualProj()):
        w = weigh(balancer, rows)
        products = rows @ (w @ rows)
        rounding = 1e-9 * rows.norm(dim=1) * (rows.norm(dim=1) @ w)
        assert bool((w >= 1 / len(rows)).all()) and bool((products >= -rounding).all())


@given(any_gradients)
def test_a_mean_that_conflicts_with_no_task_is_left_alone(rows: Tensor) -> None:
    plain = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    if bool((rows @ rows.T > 0).all()):
        torch.testing.assert_close(weigh(UPGrad(), rows), plain)
    if bool((rows @ (plain @ rows) > 0).all()):
        torch.testing.assert_close(weigh(DualProj(), rows), plain)


@given(any_gradients, st.floats(0.05, 2))
def test_cagrad_stays_in_its_ball_and_raises_the_least_gain(rows: Tensor, c: float) -> None:
    mean = rows.mean(0)
    step = cagrad.weights(rows @ rows.T, c) @ rows
    assert float((step - mean).norm()) <= c * float(mean.norm()) * (1 + 1e-6) + 1e-12 * float(rows.norm())
    least = float((rows @ step).min())
    slack = 1e-9 * float(rows.norm()) ** 2
    assert least >= float((rows @ mean).min()) - slack
    directions = torch.from_numpy(np.random.default_rng(0).standard_normal((50, rows.shape[1])))
    others = mean + c * mean.norm() * directions / directions.norm(dim=1, keepdim=True)
    assert float((rows @ others.T).min(0).values.max()) <= least + slack


@given(tame, st.floats(0.1, 0.9))
def test_cagrad_meets_the_conditions_of_its_dual(rows: Tensor, c: float) -> None:
    """Where ``g_w`` is not zero, ``G b + c |g_0| G w / |g_w|`` is least, and equal, where ``w > 0``."""
    g = rows @ rows.T
    w = cagrad.weights(g, c) - 1 / len(g)
    if float(w.max()) <= 1e-9:
        return
    mean = rows.mean(0)
    gains = rows @ (mean + w @ rows)
    assert float((w @ rows).norm()) == pytest.approx(c * float(mean.norm()), rel=1e-8)
    held = gains[w > 1e-9 * w.max()]
    assert float(held.max() - held.min()) <= 1e-9 * float(g.diagonal().max())
    assert float(gains.min()) >= float(held.min()) - 1e-9 * float(g.diagonal().max())


@given(any_gradients, st.floats(0.01, 100))
def test_sdmgrad_is_the_shortest_step(rows: Tensor, pull: float) -> None:
    tasks = len(rows)
    g = rows @ rows.T
    v = sdmgrad.weights(g, pull) * (1 + pull)
    w = v - pull / tasks
    assert float(w.sum()) == pytest.approx(1, abs=1e-9) and float(w.min()) >= -1e-12 * (1 + pull)
    products, lengths = g @ v, g.diagonal().sqrt()
    rounding = 1e-9 * lengths * (lengths @ v) + 1e-14 * (lengths @ v) ** 2
    assert bool((products >= w @ products - rounding - 1e-9 * lengths.min() * (lengths @ v)).all())


@given(any_gradients)
def test_sdmgrad_lies_between_mgda_and_the_mean(rows: Tensor) -> None:
    g = rows @ rows.T
    lengths = g.diagonal().sqrt()
    ours, theirs = sdmgrad.weights(g, 0.0), mgda.weights(g)
    assert float((ours @ rows).norm()) == pytest.approx(
        float((theirs @ rows).norm()), rel=1e-6, abs=1e-7 * float(lengths @ (ours + theirs))
    )
    torch.testing.assert_close(sdmgrad.weights(g, 1e9), torch.full_like(lengths, 1 / len(g)), atol=1e-8, rtol=0)


# Closed forms


def test_two_opposed_tasks_by_hand() -> None:
    g = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    # g_1 projected off g_2 is g_1 + g_2 / 2, and the other way round; their mean has weights 3/4
    torch.testing.assert_close(upgrad.weights(g), torch.tensor([0.75, 0.75], dtype=torch.float64))
    # by symmetry G w = w / 2 = 1 / w
    torch.testing.assert_close(nash_mtl.weights(g), torch.full((2,), math.sqrt(2), dtype=torch.float64))
    # w / 2 = w^(-1/2)
    torch.testing.assert_close(fairgrad.weights(g, 2.0), torch.full((2,), 2 ** (2 / 3), dtype=torch.float64))
    torch.testing.assert_close(mgda.weights(g), torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_tasks_that_do_not_meet_by_hand() -> None:
    lengths = torch.tensor([1e-4, 1.0, 1e4], dtype=torch.float64)
    g = torch.diag(lengths**2)
    torch.testing.assert_close(nash_mtl.weights(g), 1 / lengths, rtol=1e-12, atol=0)
    torch.testing.assert_close(fairgrad.weights(g, 2.0), lengths ** (-4 / 3), rtol=1e-12, atol=0)
    torch.testing.assert_close(mgda.weights(g), lengths**-2 / (lengths**-2).sum(), rtol=1e-12, atol=1e-300)
    for method in (upgrad, dualproj):
        torch.testing.assert_close(method.weights(g), torch.full((3,), 1 / 3, dtype=torch.float64))


@given(st.floats(0.02, 3.1), st.floats(-4, 4))
def test_nash_of_two_by_hand(angle: float, decade: float) -> None:
    """For two unit gradients ``w_1 = w_2 = (1 + cos)^(-1/2)``; one that is ``s`` times as long has ``s`` times less."""
    s, c = 10**decade, math.cos(angle)
    g = torch.tensor([[1, s * c], [s * c, s * s]], dtype=torch.float64)
    expected = torch.tensor([1, 1 / s], dtype=torch.float64) / math.sqrt(1 + c)
    torch.testing.assert_close(nash_mtl.weights(g), expected, rtol=1e-9, atol=0)


@given(any_gradients)
def test_fairgrad_at_one_is_nash(rows: Tensor) -> None:
    g = rows @ rows.T
    torch.testing.assert_close(fairgrad.weights(g, 1.0), nash_mtl.weights(g), rtol=1e-5, atol=0)


@given(tame)
def test_nash_does_not_see_the_scale_of_a_loss(rows: Tensor) -> None:
    sizes = torch.logspace(-4, 4, len(rows), dtype=torch.float64)[:, None]
    step = nash_mtl.weights(rows @ rows.T) @ rows
    scaled = rows * sizes
    torch.testing.assert_close(nash_mtl.weights(scaled @ scaled.T) @ scaled, step, rtol=1e-6, atol=1e-7)


def test_nash_exponents_divide_the_gains() -> None:
    g = (rows := gradients(1, 4)) @ rows.T
    p = np.array([1.0, 2.0, 0.5, 3.0])
    w = nash_mtl.weights(g, p)
    torch.testing.assert_close(w * (g @ w), torch.from_numpy(p), rtol=1e-10, atol=0)


def test_mgda_preference_is_the_rate_of_gain() -> None:
    rows = gradients(1, 3, shift=0.2)
    w = weigh(MGDA({"0": 4.0, "2": 0.5}), rows)
    rates = (rows @ (w @ rows)) / torch.tensor([4.0, 1.0, 0.5])
    least = rates.min()
    assert float(least) > 0 and int((w > 0).sum()) == 2
    torch.testing.assert_close(rates[w > 0], least.expand(2), rtol=1e-9, atol=0)


def test_mgda_normalises_by_length_and_loss() -> None:
    rows = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))  # losses 1, 2, 3
    # perpendicular gradients g_k / s_k have w_k in proportion to (s_k / |g_k|)^2, and so weights s_k / |g_k|^2
    for kind, s in {"none": [1, 1, 1], "l2": [1, 2, 4], "loss": [1, 2, 3], "loss+": [1, 4, 12]}.items():
        expected = torch.tensor(s) / torch.tensor([1.0, 4.0, 16.0], dtype=torch.float64)
        torch.testing.assert_close(weigh(MGDA(normalise=kind), rows), expected / expected.sum())


def test_mgda_of_losses_leaves_the_weights_undivided() -> None:
    rows = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))  # losses 1, 2, 3
    for kind, s in {"none": [1, 1, 1], "l2": [1, 2, 4], "loss": [1, 2, 3], "loss+": [1, 4, 12]}.items():
        expected = (torch.tensor(s) / torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)) ** 2
        torch.testing.assert_close(weigh(LossMGDA(normalise=kind), rows), expected / expected.sum())


@pytest.mark.parametrize("batches", [1, 2])
def test_mgda_of_losses_steps_along_the_weighted_sum_of_losses(batches: int) -> None:
    """Shared parameters and the tasks' own have the gradient of ``sum_k w_k L_k``, with ``w`` from the shared ones alone."""
    torch.manual_seed(0)
    shared, heads = torch.nn.Linear(5, 4), torch.nn.ModuleList([torch.nn.Linear(4, 1) for _ in range(3)])
    inputs = torch.randn(batches, 3, 8, 5)

    def losses(i: int) -> dict[str, Tensor]:
        each = enumerate(zip(heads, inputs[i], strict=True))
        return {str(k): (10.0**k * head(shared(x).tanh()) - 1).square().mean() for k, (head, x) in each}

    mean = {name: torch.stack([losses(i)[name] for i in range(batches)]).mean() for name in "012"}
    grads = [torch.autograd.grad(loss, list(shared.parameters()), retain_graph=True) for loss in mean.values()]
    unit = torch.stack([torch.cat([part.flatten() for part in grad]) for grad in grads]).double()
    unit = unit / unit.norm(dim=1, keepdim=True)
    w = mgda.weights(unit @ unit.T).float()
    parameters = [*shared.parameters(), *heads.parameters()]
    expected = torch.autograd.grad(torch.stack([*mean.values()]) @ w, parameters)
    balancer = LossMGDA(normalise="l2")
    balancer.prepare(list("012"))
    steps = [lambda i=i: losses(i) for i in range(batches)]
    balancer.step(steps, list(shared.parameters()), lambda loss: (loss / batches).backward())
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_preferences_weigh_the_projections() -> None:
    rows = torch.eye(3, dtype=torch.float64)
    expected = torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64) / 5
    for balancer in (UPGrad({"0": 3.0}), DualProj({"0": 3.0})):
        torch.testing.assert_close(weigh(balancer, rows), expected)
    torch.testing.assert_close(weigh(SDMGrad(1e9, {"0": 3.0}), rows), expected)


def test_cagrad_rescales_as_asked() -> None:
    rows = gradients(2, 4)
    plain = weigh(CAGrad(0.4, 0), rows)
    torch.testing.assert_close(plain, cagrad.weights(rows @ rows.T, 0.4))
    torch.testing.assert_close(weigh(CAGrad(0.4, 1), rows), plain / 1.16)
    torch.testing.assert_close(weigh(CAGrad(0.4, 2), rows), plain / 1.4)
    torch.testing.assert_close(weigh(CAGrad(0.0, 0), rows), torch.full((4,), 0.25, dtype=torch.float64))


def test_the_step_is_cut_at_the_greatest_norm() -> None:
    rows = gradients(2, 4)
    for balancer in (NashMTL(max_norm=0.1), FairGrad(max_norm=0.1)):
        assert float((weigh(balancer, rows) @ rows).norm()) == pytest.approx(0.1)
    free = weigh(NashMTL({"0": 3.0}, max_norm=0), rows) @ rows
    assert float(free.norm()) == pytest.approx(math.sqrt(3 + 1 + 1 + 1))


def test_nash_keeps_its_weights_for_some_steps() -> None:
    one, two = gradients(1, 3), gradients(2, 3)
    balancer = NashMTL(update_every=2, max_norm=0)
    balancer.prepare(["0", "1", "2"])
    first = balancer.weigh(one @ one.T, names(3))
    torch.testing.assert_close(balancer.weigh(two @ two.T, names(3)), first)
    third = balancer.weigh(two[1:] @ two[1:].T, {"1": 1.0, "2": 1.0})
    torch.testing.assert_close(third, weigh(NashMTL(max_norm=0), two[1:]))
    kept = balancer.weigh(one[:2] @ one[:2].T, {"1": 1.0, "0": 1.0})
    torch.testing.assert_close(kept, torch.stack([third[0], first[0]]))


def test_nash_needs_the_names_of_tasks_only_to_keep_weights() -> None:
    NashMTL().prepare([])
    with pytest.raises(InputError, match="attribute 'tasks'"):
        NashMTL(update_every=2).prepare([])


# Peers


@settings(max_examples=40, deadline=None)
@given(tame)
def test_projections_are_those_of_torchjd(rows: Tensor) -> None:
    from torchjd._linalg import QuadprogProjector

    exact = QuadprogProjector(norm_eps=0.0, reg_eps=1e-11)
    torch.testing.assert_close(weigh(UPGrad(), rows) @ rows, aggregation.UPGrad(projector=exact)(rows), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        weigh(DualProj(), rows) @ rows, aggregation.DualProj(projector=exact)(rows), rtol=1e-6, atol=1e-6
    )


@settings(max_examples=20, deadline=None)
@given(tame, st.floats(0.1, 0.9))
def test_cagrad_gains_what_that_of_torchjd_gains(rows: Tensor, c: float) -> None:
    """Its conic solver stops at about 1e-8 of the objective, which leaves about the root of that in the weights."""
    ours = float((rows @ (cagrad.weights(rows @ rows.T, c) @ rows)).min())
    theirs = float((rows @ aggregation.CAGrad(c, norm_eps=0.0)(rows)).min())
    size = float(rows.norm(dim=1).max()) ** 2
    assert theirs - 1e-9 * size <= ours <= theirs + 1e-4 * size


@settings(max_examples=20, deadline=None)
@given(st.builds(gradients, st.integers(0, 2**31), st.integers(2, 6)), st.sampled_from([1.0, 2.0]))
def test_fairgrad_is_that_of_torchjd(rows: Tensor, alpha: float) -> None:
    rows = rows / rows.norm(dim=1).max()
    g = rows @ rows.T
    theirs = aggregation.FairGradWeighting(alpha)(g)
    residual = float((g @ theirs - theirs ** (-1 / alpha)).abs().max())
    torch.testing.assert_close(fairgrad.weights(g, alpha), theirs, rtol=1e-6, atol=100 * residual + 1e-6)


@settings(max_examples=20, deadline=None)
@given(tame)
def test_mgda_is_no_longer_than_that_of_torchjd(rows: Tensor) -> None:
    theirs = aggregation.MGDA(epsilon=1e-9, max_iters=2000)(rows)
    ours = weigh(MGDA(), rows) @ rows
    assert float(ours.norm()) <= float(theirs.norm()) * (1 + 1e-12)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05 * float(rows.norm()))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
def test_nash_is_near_that_of_torchjd(seed: int) -> None:
    """Its sequence of convex programs stops at steps of 1e-3."""
    rows = gradients(seed, 3, shift=0.3)
    theirs = aggregation.NashMTL(n_tasks=3, max_norm=0.0, update_weights_every=1, optim_niter=100)(rows)
    torch.testing.assert_close(weigh(NashMTL(max_norm=0), rows) @ rows, theirs.double(), rtol=1e-2, atol=1e-2)


@settings(max_examples=8, deadline=None)
@given(tame)
def test_sdmgrad_is_the_limit_of_that_of_torchjd(rows: Tensor) -> None:
    g = rows @ rows.T
    theirs = aggregation.SDMGradWeighting(lr=0.5 * float(g.diagonal().sqrt().mean() ** 2 / torch.linalg.eigvalsh(g)[-1]))
    for _ in range(50):
        w = theirs(g)
    torch.testing.assert_close(sdmgrad.weights(g, 0.3) @ rows, w @ rows, rtol=1e-4, atol=1e-4)


# Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MGDA(normalise="l3"), "normalise 'l3': expected one of none, l2, loss, loss\\+"),
        (lambda: MGDA({"a": 0.0}), "preference 0.0 for task 'a': expected a finite number > 0"),
        (lambda: UPGrad({"a": math.nan}), "preference nan for task 'a'"),
        (lambda: CAGrad(c=-1), "c -1: expected a finite number >= 0"),
        (lambda: CAGrad(rescale=3), "rescale 3: expected 0, 1 or 2"),
        (lambda: NashMTL(update_every=0), "update_every 0: expected 1 or more"),
        (lambda: NashMTL(max_norm=-1), "max_norm -1: expected a finite number >= 0"),
        (lambda: FairGrad(alpha=0), "alpha 0: expected a finite number > 0"),
        (lambda: FairGrad(max_norm=math.inf), "max_norm inf"),
        (lambda: SDMGrad(pull=-1), "pull -1: expected a finite number >= 0"),
        (lambda: DualProj({"lefd": 2}).prepare(["left", "right"]), "unknown task 'lefd': did you mean 'left'"),
    ],
)
def test_settings_that_are_none(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
