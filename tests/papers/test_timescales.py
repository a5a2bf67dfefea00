"""Leaky recurrent networks: special cases of the models, labels, curricula, timescales of known processes, damage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polytask as pt
from polytask.data import Schedule
from polytask.errors import InputError
from polytask.papers import timescales as ts
from polytask.papers.timescales import PAPER, BitStream, Gated, LeakyRNN, MemoryNetwork, experiment, name_of

TASKS = [name_of(n) for n in range(2, 8)]


def key(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def core(width: int = 12, **settings: Any) -> LeakyRNN:
    torch.manual_seed(0)
    return LeakyRNN(width, **settings)


# The models


def reference(network: LeakyRNN, bits: Tensor, h: Tensor, repeat: int = 1) -> Tensor:
    """Step by step from the equations."""
    weight = network.recurrent.weight.clone().fill_diagonal_(0)
    tau = (network.raw_tau * repeat).clamp(min=1)
    for x in bits.repeat_interleave(repeat, 1).T:
        drive = h @ weight.T + network.recurrent.bias + x[:, None] @ network.input.weight.T + network.input.bias
        if network.inside:
            h = (1 - 1 / tau) * h + network.activation(drive) / tau
        else:
            h = network.activation((1 - 1 / tau) * h + drive / tau)
    return h


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("repeat", [1, 3])
def test_both_models_follow_their_equations_in_value_and_gradient(inside: bool, activation: str, repeat: int) -> None:
    network = core(inside=inside, activation=activation)
    bits, start = ts.biased_bits(5, 9, key()), torch.rand(5, 12, generator=key(1))
    found, expected = network(bits, start, repeat), reference(network, bits, start, repeat)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(network.states(bits, start, repeat)[-1], expected)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), list(network.parameters())),
        torch.autograd.grad(expected.square().sum(), list(network.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inside", [False, True])
def test_with_time_constants_of_1_it_is_elmans_network(inside: bool) -> None:
    network = core(tau=1, inside=inside, activation="tanh")
    elman = nn.RNN(1, 12, batch_first=True)
    with torch.no_grad():
        elman.weight_hh_l0.copy_(network.weights)
        elman.weight_ih_l0.copy_(network.input.weight)
        elman.bias_ih_l0.copy_(network.input.bias)
        elman.bias_hh_l0.copy_(network.recurrent.bias)
    bits, start = ts.fair_bits(4, 10, key()), torch.rand(4, 12, generator=key(1))
    torch.testing.assert_close(network(bits, start), elman(bits[..., None], start[None])[1][0])


@pytest.mark.parametrize("inside", [False, True])
def test_without_weights_a_state_decays_by_its_own_constant(inside: bool) -> None:
    network = core(inside=inside)
    with torch.no_grad():
        for layer in (network.input, network.recurrent):
            layer.weight.zero_()
            layer.bias.zero_()
        network.raw_tau.copy_(torch.linspace(1, 20, 12))
    start = torch.rand(3, 12, generator=key()) + 0.1
    states = network.states(torch.zeros(3, 15), start)
    for t in (1, 7, 15):
        torch.testing.assert_close(states[t - 1], (1 - 1 / network.tau) ** t * start)
    tau = ts.isolated_timescale(network.tau.detach())
    assert float(tau[0]) == 0
    torch.testing.assert_close(torch.exp(-1 / tau), 1 - 1 / network.tau.detach())


def test_no_neuron_hears_itself_and_no_constant_falls_below_1() -> None:
    network = core()
    bits, start = ts.fair_bits(4, 6, key()), torch.rand(4, 12, generator=key(1))
    before = network(bits, start)
    with torch.no_grad():
        network.recurrent.weight.fill_diagonal_(5.0)
        torch.testing.assert_close(network(bits, start), before)
        network.raw_tau[:] = 0.2
        slowest = network(bits, start)
        network.raw_tau[:] = 1.0
        torch.testing.assert_close(network(bits, start), slowest)
    network(bits, start).sum().backward()
    assert network.recurrent.weight.grad is not None and not network.recurrent.weight.grad.diagonal().any()
    assert not LeakyRNN(4, tau=3.0).raw_tau.requires_grad


def test_the_continuous_variant_draws_how_long_a_bit_lasts() -> None:
    network = core(repeats=ts.CONTINUOUS, inside=True)
    bits = ts.fair_bits(2, 3, key())
    assert {len(network.states(bits)) // 3 for _ in range(40)} == {7, 8, 9, 10}


def test_settings_that_cannot_be_are_named() -> None:
    for settings, message in (
        ({"activation": "tan"}, "tanh"),
        ({"tau": 0.5}, "tau 0.5"),
        ({"repeats": (0,)}, "expected numbers >= 1"),
    ):
        with pytest.raises(InputError, match=message):
            LeakyRNN(4, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'lstm'"):
        Gated(4, "lstn")
    with pytest.raises(InputError, match="length 0"):
        core()(torch.zeros(2, 0))
    network = MemoryNetwork(core(), heads=3, one_head=True)
    bits = ts.fair_bits(4, 9, key())
    with pytest.raises(InputError, match="one head for the tasks"):
        network.losses((bits, ts.labels("dms", bits, ["n2", "n3"])))
    with pytest.raises(InputError, match="expected N from 2 to 4"):
        MemoryNetwork(core(), heads=3)(bits, ["n5"])
    for wrong in ("m3", "n", "n0"):
        with pytest.raises(InputError, match="expected 'n' and a number"):
            ts.labels("dms", bits, [wrong])
    with pytest.raises(InputError, match="sequences of 9 bits, expected at least 12"):
        ts.labels("parity", bits, ["n12"])
    with pytest.raises(InputError, match="did you mean 'parity'"):
        ts.draw("party", ["n2"], 3)


# The tasks


def test_labels_are_those_of_the_definitions() -> None:
    bits = ts.biased_bits(500, 20, key())
    for n in range(2, 12):
        differ = ts.parity(bits, n) != ts.parity(bits, n - 1)
        assert torch.equal(differ, bits[:, -n] == 1)
    assert bool((ts.match(bits, 1) == 1).all())
    assert ts.match(torch.tensor([1.0, 0.0, 1.0]), 3) == 1 and ts.match(torch.tensor([1.0, 0.0, 1.0]), 2) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10])
def test_chance_is_that_of_the_more_frequent_label(n: int) -> None:
    odd = float(ts.parity(ts.biased_bits(100_000, 12, key(n)), n).float().mean())
    expected = 0.5 if n % 2 else 0.5 * (1 - 1 / (n + 1))
    assert odd == pytest.approx(expected, abs=0.006)
    assert ts.chance("parity", n) == pytest.approx(max(expected, 1 - expected))
    assert ts.chance("dms", n) == (1.0 if n == 1 else 0.5)


def test_lengths_of_batches_are_drawn_for_the_largest_n() -> None:
    lengths = {ts.draw("dms", ["n2", "n4"], 1, key(i))[0].shape[1] for i in range(300)}
    assert lengths == set(range(6, 18))


def test_parities_odds_vary_from_sequence_to_sequence() -> None:
    shares = ts.biased_bits(4000, 200, key()).mean(1)
    assert float(shares.var()) == pytest.approx(1 / 12, abs=0.005)
    assert float(ts.fair_bits(4000, 200, key()).mean(1).var()) == pytest.approx(0.25 / 200, rel=0.1)


# The curricula


def record(epoch: float, **accuracies: float) -> dict[str, Any]:
    return {"epoch": epoch, "validation": {task: {"accuracy": value} for task, value in accuracies.items()}}


def test_promotion_asks_it_of_the_mean_and_of_the_newest() -> None:
    curriculum = ts.cumulative(TASKS)
    good, low = 0.995, 0.96
    assert curriculum.tasks(TASKS, 1, [record(1, n2=0.98)]) == ["n2"]  # above, not equal
    first = [record(1, n2=good)]
    assert curriculum.tasks(TASKS, 1, first) == ["n2", "n3"]
    assert curriculum.tasks(TASKS, 2, [*first, record(2, n2=1.0, n3=0.975)]) == ["n2", "n3"]  # the mean alone
    assert curriculum.tasks(TASKS, 2, [*first, record(2, n2=low, n3=good)]) == ["n2", "n3"]  # the newest alone
    assert curriculum.tasks(TASKS, 2, [*first, record(2, n2=0.975, n3=1.0)]) == ["n2", "n3", "n4"]
    assert ts.solved([0.975, 1.0]) and not ts.solved([1.0, 0.975]) and not ts.solved([0.98])


def test_curricula_are_windows_of_their_sizes() -> None:
    assert ts.single(TASKS).stages == [[task] for task in TASKS]
    assert ts.cumulative(TASKS, heads=2, add=3).stages == [TASKS[:2], TASKS[:5], TASKS]
    assert ts.sliding(TASKS, 3, 2).stages == [TASKS[:3], TASKS[2:5], TASKS[3:]]
    assert ts.sliding(TASKS, 6).stages == [TASKS]
    for wrong in (lambda: ts.sliding(TASKS, 2, 3), lambda: ts.cumulative(TASKS, 0), lambda: ts.sliding(TASKS, 9)):
        with pytest.raises(InputError, match="expected"):
            wrong()


def test_a_stream_repeats_its_epochs_and_tests_on_other_sequences() -> None:
    stream = BitStream("dms", ts.cumulative(TASKS), TASKS, batch_size=8, length=3, tests=2, seed=5)
    first = list(stream.epoch(0))
    assert [list(labels) for _, labels in first] == [["n2"]] * 3
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first[1:], stream.epoch(0, skip=1), strict=True))
    stream.hear([record(1, n2=1.0), record(2, n2=1.0, n3=1.0)])
    assert [list(labels) for _, labels in stream.epoch(0)] == [["n2"]] * 3
    assert list(next(stream.epoch(2))[1]) == ["n2", "n3", "n4"]
    assert [list(labels) for _, labels in stream.held_out] == [["n2", "n3", "n4"]] * 2
    halves = [BitStream("dms", ts.single(TASKS), TASKS, 8, 3, 2, 5, rank, 2) for rank in (0, 1)]
    a, b = (next(half.epoch(0))[0] for half in halves)
    assert torch.equal(torch.stack([a, b], 1).flatten(0, 1), first[0][0])


def test_a_killed_run_goes_on_with_the_same_tasks_and_ends_the_same(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Killer:
        def step(self, step: int, losses: dict[str, float]) -> None:
            if step == 95:
                raise Killed

        def record(self, record: dict[str, Any]) -> None:
            pass

        def close(self) -> None:
            pass

    def run(out: Path | None, listeners: tuple[Any, ...] = ()) -> Any:
        torch.manual_seed(0)
        network = MemoryNetwork(LeakyRNN(24), heads=6)
        stream = BitStream("dms", ts.cumulative(TASKS, goal=0.7), TASKS, 32, length=20, tests=4)
        return pt.fit(
            network,
            stream,
            stream.held_out,
            steps=120,
            evaluate_every=20,
            lr=1e-2,
            monitor="network/progress",
            out=out,
            listeners=listeners,
        )

    whole = run(None)
    with pytest.raises(Killed):
        run(tmp_path, (Killer(),))
    again = run(tmp_path)
    assert [r["validation"] for r in again.history] == [r["validation"] for r in whole.history]
    assert len(whole.history[-1]["validation"]) > 2  # it was promoted: more than n2 and the network
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_losses_are_cross_entropies_head_by_head_and_progress_counts_what_is_solved() -> None:
    network = MemoryNetwork(Gated(6, "gru"), heads=4)
    bits, labels = ts.draw("dms", ["n2", "n5"], 30, key())
    state = network.core(bits)
    for task, loss in network.losses((bits, labels)).items():
        place = int(task[1:]) - 2
        rows = slice(2 * place, 2 * place + 2)
        logits = state @ network.readout.weight[rows].T + network.readout.bias[rows]
        torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels[task]))
    with torch.no_grad():
        named = network(bits, ["n2", "n5"]).argmax(2)
    perfect = {"n2": named[:, 0], "n5": named[:, 1]}
    assert network.evaluate([(bits, perfect)])["network"] == {"progress": 5.0}
    assert network.evaluate([(bits, {"n2": named[:, 0], "n5": 1 - named[:, 1]})])["network"]["progress"] == 3.75


# Timescales


@pytest.mark.parametrize("a", [0.5, 0.8, 0.95])
def test_the_timescale_of_an_autoregressive_process_is_found(a: float) -> None:
    from scipy.signal import lfilter

    noise = np.random.default_rng(0).standard_normal((4000, 40, 1))
    activity = torch.from_numpy(lfilter([1.0], [1.0, -a], noise, axis=0)[200:].copy())
    correlation = ts.autocorrelation(activity, 60)[:, 0]
    assert ts.fit_decay(correlation).tau == pytest.approx(-1 / math.log(a), rel=0.08)


def test_autocorrelations_are_the_sums_of_their_definition() -> None:
    activity = torch.randn(30, 4, 3, generator=key(), dtype=torch.double)
    found = ts.autocorrelation(activity, 10)
    x = activity - activity.mean((0, 1))
    for lag in range(11):
        mean = (x[: 30 - lag] * x[lag:]).sum(0).mean(0) / (30 - lag)
        torch.testing.assert_close(found[lag], mean / x.square().mean((0, 1)))
    still = torch.cat([activity, torch.full((30, 4, 1), 3.7, dtype=torch.double)], 2)
    assert bool(ts.autocorrelation(still, 10)[:, 3].isnan().all())
    with pytest.raises(InputError, match="from 1 to 29"):
        ts.autocorrelation(activity, 30)


def test_one_or_two_exponentials_are_told_apart_and_the_slower_is_kept() -> None:
    lags = torch.arange(80, dtype=torch.double)
    noise = 0.002 * torch.randn(80, generator=key(), dtype=torch.double)
    one = ts.fit_decay(torch.exp(-lags / 6) + noise)
    assert one.tau == pytest.approx(6, rel=0.1)
    two = ts.fit_decay(0.6 * torch.exp(-lags / 2) + 0.4 * torch.exp(-lags / 25) + noise)
    assert two.double and two.tau == pytest.approx(25, rel=0.1)
    faint = 0.97 * torch.exp(-lags / 2) + 0.03 * torch.exp(-lags / 25)
    assert ts.fit_decay(faint).tau == pytest.approx(2, rel=0.1)
    assert ts.fit_decay(faint, least=0).tau == pytest.approx(25, rel=0.1)
    assert ts.fit_decay(torch.exp(-lags / 1e6)).tau == pytest.approx(100, rel=1e-3)
    assert math.isnan(ts.fit_decay(lags * math.nan).tau)


def test_network_timescales_are_those_of_neurons_that_only_leak() -> None:
    network = core(4)
    with torch.no_grad():
        network.recurrent.weight.zero_()
        network.recurrent.bias.fill_(5.0)  # positive states: the linear regime
        network.raw_tau.copy_(torch.tensor([2.0, 5.0, 8.0, 1.0]))
        network.input.weight.copy_(torch.tensor([[1.0], [1.0], [1.0], [0.0]]))
    found = ts.network_timescales(network, steps=6000, trials=20, lags=40)
    expected = ts.isolated_timescale(network.tau.detach())
    torch.testing.assert_close(found[:3].float(), expected[:3], rtol=0.1, atol=0)
    assert bool(found[3].isnan())


# Damage


def test_an_ablated_neuron_neither_hears_nor_tells() -> None:
    network = MemoryNetwork(core(), heads=3)
    damaged = ts.ablated(network, [3, 7])
    assert isinstance(damaged.core, LeakyRNN)
    weights = damaged.core.weights
    assert not weights[[3, 7]].any() and not weights[:, [3, 7]].any() and not damaged.core.input.weight[[3, 7]].any()
    bits, start = ts.fair_bits(6, 8, key()), torch.rand(6, 12, generator=key(1))
    other = start.clone()
    other[:, [3, 7]] += 4.0
    logits = [damaged.read(damaged.core(bits, h), ["n2"]) for h in (start, other)]
    torch.testing.assert_close(logits[0], logits[1])
    same = ts.ablated(network, [])
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), network.parameters(), strict=True))
    assert network.core.weights[3].any()  # type: ignore[union-attr, operator, index]
    with pytest.raises(InputError, match="from 0 to 11"):
        ts.ablated(network, [12])
    with pytest.raises(InputError, match="expected a LeakyRNN"):
        ts.ablated(MemoryNetwork(Gated(4)), [0])


def test_perturbations_have_their_size() -> None:
    network = MemoryNetwork(core(), heads=3)
    leaky = network.core
    assert isinstance(leaky, LeakyRNN)
    noisy, slow = ts.perturbed(network, 0.3, key()).core, ts.slowed(network, 0.3, key()).core
    assert isinstance(noisy, LeakyRNN) and isinstance(slow, LeakyRNN)
    moved = (noisy.weights - leaky.weights).detach()
    assert float(moved.norm() / leaky.weights.detach().norm()) == pytest.approx(0.3, rel=1e-5)
    assert not moved.diagonal().any()
    longer = (slow.tau - leaky.tau).detach()
    assert bool((longer >= 0).all()) and float(longer.norm() / leaky.tau.detach().norm()) == pytest.approx(0.3, rel=1e-5)


def test_scans_are_pixels_of_digits_in_their_order() -> None:
    from sklearn.datasets import load_digits

    rows = {"".join(map(str, (image > 7.5).astype(int))) for image in load_digits().data}
    for bits in ts.scans(5, 64, seed=1):
        assert "".join(str(int(bit)) for bit in bits) in rows
    assert ts.scans(7, 20).shape == (7, 20)
    with pytest.raises(InputError, match="from 1 to 64"):
        ts.scans(2, 65)


def test_a_probe_reads_what_states_hold() -> None:
    class Window(nn.Module):
        """A state that is the last four bits, as they are and as products of signs: any parity of them is linear."""

        width = 5

        def forward(self, bits: Tensor) -> Tensor:
            last = bits[:, -4:]
            return torch.cat([last, (1 - 2 * last).prod(1, keepdim=True)], 1)

    network = MemoryNetwork(Window(), heads=6)
    assert ts.probed(network, "parity", 4) == 1.0
    assert ts.probed(network, "parity", 5) < 0.75


def test_a_network_goes_on_learning_from_a_copy() -> None:
    torch.manual_seed(0)
    network = MemoryNetwork(LeakyRNN(24), heads=6)
    before = [p.clone() for p in network.parameters()]
    copy, accuracy = ts.retrained(network, "dms", 2, updates=120, batch_size=64, lr=1e-2)
    assert accuracy > 0.9 and accuracy == ts.accuracies(copy, "dms", ["n2"], seed=1)["n2"]
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    tasks = ["n2", "n3"]
    assert set(ts.on_scans(copy, "dms", tasks, 12)) == set(tasks)


def test_the_optimizer_is_the_papers() -> None:
    group = ts.sgd([nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.05, 0.1, True)


def test_the_experiment_measures_what_the_claims_and_the_plot_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CHECK", 5), ("BATCH", 16), ("TESTS", 2), ("AGAIN", 2)):
        monkeypatch.setattr(experiment, name, value)
    found = experiment.measure(0, Path(), updates=10, width=8)
    for claim in PAPER.claims:
        assert all(math.isfinite(found[name]) for name in claim.pair)
    assert PAPER.plot is not None and PAPER.plot({0: found, 1: found}).axes


def test_without_a_curriculum_a_schedule_of_one_task_serves() -> None:
    stream = BitStream("parity", Schedule({0: ["n5"]}), TASKS, 4, length=1, tests=1)
    assert list(next(stream.epoch(7))[1]) == ["n5"]
