"""Multitasking Hebbian networks: closed forms of the theory, the same states as spin after spin, Boltzmann's law."""

from __future__ import annotations

import itertools
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.errors import InputError
from polytask.papers.multitask_hebbian import (
    PAPER,
    HebbianNetwork,
    Sweeper,
    counted_odds,
    critical_dilution,
    critical_temperature,
    dataset_entropy,
    digits,
    diluted_patterns,
    estimated_quality,
    evenness,
    examples_needed,
    heat_bath,
    hierarchical,
    hierarchical_state,
    magnetisations,
    noisy_examples,
    odds,
    one_step_overlap,
    parallel,
    pattern_losses,
    phase_diagram,
    random_states,
    relax,
    solve,
    stability,
    stored,
    supervised,
    synthetic,
    unsupervised,
)
from polytask.papers.multitask_hebbian.mean_field import columns


def key(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def couplings(network: HebbianNetwork) -> Tensor:
    """The whole matrix, from its definition."""
    factors = network.factors.double()
    matrix = float(network.scale) * factors.T @ factors / network.sites
    return matrix.fill_diagonal_(0)


# Patterns and networks


def test_patterns_have_their_share_of_blanks_and_both_signs() -> None:
    patterns = diluted_patterns(3, 20_000, 0.3, key())
    for value, share in ((0, 0.3), (1, 0.35), (-1, 0.35)):
        assert float((patterns == value).float().mean()) == pytest.approx(share, abs=0.01)
    examples = noisy_examples(patterns, 4, 0.4, key(1))
    assert torch.equal(examples == 0, (patterns == 0)[:, None].expand_as(examples))
    assert float((examples * patterns[:, None])[examples != 0].mean()) == pytest.approx(0.4, abs=0.01)
    assert torch.equal(noisy_examples(patterns, 2, 1.0), patterns[:, None].expand(-1, 2, -1))


def test_the_hierarchical_state_follows_the_first_pattern_that_is_not_blank() -> None:
    patterns = torch.tensor([[1.0, 0.0, 0.0, -1.0], [-1.0, -1.0, 0.0, 1.0]])
    state = hierarchical_state(patterns, key())
    assert state[[0, 1, 3]].tolist() == [1, -1, -1] and abs(float(state[2])) == 1
    many = diluted_patterns(4, 50_000, 0.6, key())
    found = magnetisations(many, hierarchical_state(many, key(1))).double()
    torch.testing.assert_close(found, hierarchical(4, 0.6), atol=0.01, rtol=0)
    assert float(hierarchical(4, 0.6).sum()) == pytest.approx(1 - 0.6**4)


def test_fields_and_energy_are_those_of_the_matrix_without_its_diagonal() -> None:
    patterns, states = diluted_patterns(3, 40, 0.4, key()), random_states(5, 40, key(1)).double()
    examples = noisy_examples(patterns, 6, 0.5, key(2))
    for network in (stored(patterns), supervised(examples), unsupervised(examples)):
        matrix = couplings(network)
        torch.testing.assert_close(network.fields(states), states @ matrix)
        energy = torch.stack([-(s @ matrix @ s) / 2 for s in states])
        torch.testing.assert_close(network.energy(states), energy)
        # A flip costs 2 s_i h_i.
        flipped = states.clone()
        flipped[:, 7] *= -1
        cost = 2 * states[:, 7] * network.fields(states)[:, 7]
        torch.testing.assert_close(network.energy(flipped) - network.energy(states), cost)


def test_both_protocols_have_the_couplings_of_their_definition() -> None:
    patterns = diluted_patterns(2, 30, 0.3, key())
    examples, r = noisy_examples(patterns, 5, 0.6, key(1)).double(), 0.6
    normaliser = r**2 + (1 - r**2) / 5
    means = examples.mean(1)
    with_teacher = (means.T @ means / (30 * normaliser)).fill_diagonal_(0)
    torch.testing.assert_close(couplings(supervised(examples, r)), with_teacher)
    without = (torch.einsum("kai,kaj->ij", examples, examples) / (30 * normaliser * 5)).fill_diagonal_(0)
    torch.testing.assert_close(couplings(unsupervised(examples, r)), without)


def test_protocols_agree_for_one_example_and_are_hebbs_rule_for_perfect_ones() -> None:
    patterns = diluted_patterns(3, 50, 0.3, key())
    one = noisy_examples(patterns, 1, 0.4, key(1))
    torch.testing.assert_close(couplings(supervised(one, 0.4)), couplings(unsupervised(one, 0.4)))
    perfect = noisy_examples(patterns, 7, 1.0)
    for network in (supervised(perfect), unsupervised(perfect), unsupervised(perfect, 1.0)):
        torch.testing.assert_close(couplings(network), couplings(stored(patterns)))


def test_quality_and_normaliser_are_seen_in_the_examples() -> None:
    examples = noisy_examples(diluted_patterns(3, 20_000, 0.5, key()), 10, 0.3, key(1))
    assert estimated_quality(examples) == pytest.approx(0.3, abs=0.01)
    assert float(supervised(examples).scale) == pytest.approx(float(supervised(examples, 0.3).scale), rel=0.02)
    with pytest.raises(InputError, match="1 of each pattern, expected at least two"):
        estimated_quality(examples[:, :1])
    opposite = torch.stack([torch.ones(4), -torch.ones(4)])[None]
    assert not supervised(opposite).fields(torch.ones(4)).any()


def test_losses_and_energy_are_one_to_machine_precision() -> None:
    patterns, states = diluted_patterns(4, 60, 0.4, key()).double(), random_states(9, 60, key(1)).double()
    near, mirrored = pattern_losses(patterns, states)
    m, active = magnetisations(patterns, states), patterns.abs().mean(1)
    torch.testing.assert_close(near, (1 + active) / 2 - m, atol=1e-14, rtol=0)
    torch.testing.assert_close(mirrored, (1 + active) / 2 + m, atol=1e-14, rtol=0)
    constant = 60 / 2 * (((1 + active) / 2).square().sum() - active.sum() / 60)
    energy = 60 / 2 * (near * mirrored).sum(1) - constant
    torch.testing.assert_close(stored(patterns).energy(states), energy, atol=1e-12, rtol=0)


def test_without_blanks_it_is_hopfields_network() -> None:
    patterns = diluted_patterns(3, 3000, 0.0, key())
    network = stored(patterns)
    spoilt = patterns[1] * torch.where(torch.rand(3000, generator=key(1)) < 0.2, -1.0, 1.0)
    assert float(magnetisations(patterns, relax(network.sweeper(), spoilt))[1]) == 1.0


# One step, by signal to noise


def test_closed_forms_of_signal_to_noise() -> None:
    assert one_step_overlap(dataset_entropy(0.2, 50)) == pytest.approx(0.851, abs=1e-3)
    assert examples_needed(0.95, 0.2) == pytest.approx(92.2, abs=0.05)
    assert one_step_overlap((1 - 0.04) / (examples_needed(0.7, 0.2) * 0.04)) == pytest.approx(0.7)
    assert dataset_entropy(1.0, 3) == 0 and one_step_overlap(0) == 1


@pytest.mark.parametrize(("patterns", "dilution"), [(3, 0.0), (2, 0.25)])
def test_one_step_overlaps_are_the_theorys_for_both_protocols(patterns: int, dilution: float) -> None:
    drawn = diluted_patterns(patterns, 5000, dilution, key())
    examples = noisy_examples(drawn, 50, 0.2, key(1))
    for learn in (supervised, unsupervised):
        found = synthetic.one_step(learn(examples, 0.2), drawn, key(2))
        assert found == pytest.approx(one_step_overlap(dataset_entropy(0.2, 50)), abs=0.03)


def test_examples_needed_are_read_between_those_measured() -> None:
    counts = (25, 50, 100, 200)
    overlaps = [one_step_overlap(dataset_entropy(0.2, count)) for count in counts]
    assert synthetic.needed(counts, overlaps, 0.95) == pytest.approx(92.2, abs=0.1)
    assert synthetic.needed(counts, overlaps, 0.9999) == 200


# Dynamics


def spin_after_spin(matrix: Tensor, states: Tensor, thresholds: Tensor) -> Tensor:
    """The plain loop, thresholds being in the unit of fields."""
    states = states.clone()
    for state, least in zip(states, thresholds, strict=True):
        for i in range(len(state)):
            state[i] = 1.0 if matrix[i] @ state > least[i] else -1.0
    return states


@pytest.mark.parametrize("beta", [0.5, 2.0, 20.0, math.inf])
@pytest.mark.parametrize("block", [1, 7, 64, 300])
def test_a_sweep_is_that_of_one_spin_after_another(beta: float, block: int) -> None:
    """From random states, where magnetisations form within the sweep, and blocks are as large as the network."""
    patterns = diluted_patterns(4, 300, 0.4, key())
    for network in (stored(patterns), supervised(noisy_examples(patterns, 5, 0.5, key(1)))):
        sweeper = Sweeper(network.factors, float(network.scale), block)
        states = random_states(3, 300, key(2))
        for seed in range(3):
            thresholds = sweeper.thresholds(states, beta, key(seed))
            unit = float(network.scale) / 300
            expected = spin_after_spin(couplings(network), states.double(), thresholds * unit)
            after = sweeper.sweep(states, thresholds)
            assert torch.equal(after.double(), expected)
            assert torch.equal(sweeper.sweep(states[1], thresholds[1]), after[1])
            states = after


def test_thresholds_are_drawn_by_the_heat_baths_odds() -> None:
    sweeper = Sweeper(torch.ones(1, 50), scale=2.0)
    drawn = sweeper.thresholds(torch.ones(4000, 50), 0.7, key())
    assert bool((drawn % 1 == 0.5).all())
    for field in (-40, -3, 0, 5, 60):
        expected = (1 + math.tanh(0.7 * 2.0 * field / 50)) / 2
        assert float((field > drawn).double().mean()) == pytest.approx(expected, abs=0.005)


def test_chains_have_boltzmanns_law() -> None:
    patterns, beta, sites = diluted_patterns(2, 6, 0.2, key(3)), 1.5, 6
    network = stored(patterns)
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=sites)))
    expected = (-beta * network.energy(every)).softmax(0)
    chain = heat_bath(network.sweeper(), random_states(20_000, sites, key(1)), beta, key(2))
    states = next(islice(chain, 30, None))
    which = ((states + 1) / 2) @ 2.0 ** torch.arange(sites - 1, -1, -1)
    found = torch.bincount(which.long(), minlength=64) / len(states)
    assert float((found - expected).abs().sum()) < 0.06 < float((expected - 1 / 64).abs().sum())


def test_at_zero_temperature_energy_falls_to_a_state_that_stays() -> None:
    patterns = diluted_patterns(5, 400, 0.7, key())
    network, states = stored(patterns), random_states(20, 400, key(1))
    sweeper, energies = network.sweeper(), [network.energy(states)]
    blank = (patterns == 0).all(0)
    assert blank.any()
    for after in islice(heat_bath(sweeper, states), 20):
        energies.append(network.energy(after))
        assert bool((energies[-1] <= energies[-2] + 1e-9).all())
        assert torch.equal(after[:, blank], states[:, blank])  # spins without a field stay
    settled = relax(sweeper, states)
    assert torch.equal(network.step(settled), settled) and torch.equal(relax(sweeper, settled), settled)
    assert not torch.equal(relax(sweeper, states, sweeps=1), states)


def test_large_sums_are_exact_too() -> None:
    factors = 500.0 * diluted_patterns(3, 200, 0.2, key())
    sweeper, states = Sweeper(factors, block=50), random_states(2, 200, key(1))
    assert sweeper.dtype == np.float64 and Sweeper(factors / 500).dtype == np.float32
    assert torch.equal(sweeper.sweep(states, sweeper.thresholds(states)), Sweeper(factors / 500).sweep(states, -states / 2))
    assert sweeper.sweep(states, sweeper.thresholds(states)).dtype == torch.float32


# Self-consistency


def test_columns_and_their_odds() -> None:
    each, chances = columns(3), odds(3, 0.3)
    assert each.shape == (27, 3) and float(chances.sum()) == pytest.approx(1)
    torch.testing.assert_close(chances @ each.square(), torch.full((3,), 0.7, dtype=torch.double))
    patterns = torch.tensor([[1.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.0, 1.0]])
    counted = {tuple(c.tolist()): float(o) for c, o in zip(columns(2), counted_odds(patterns), strict=True) if o}
    assert counted == {(1, 0): 0.5, (0, 0): 0.25, (-1, 1): 0.25}
    drawn = diluted_patterns(3, 100_000, 0.3, key())
    torch.testing.assert_close(counted_odds(drawn), chances, atol=0.005, rtol=0)


def test_up_to_which_dilution_the_hierarchical_state_is_stable() -> None:
    assert critical_dilution(2) == 1
    assert critical_dilution(3) == pytest.approx((math.sqrt(5) - 1) / 2, abs=1e-12)
    assert critical_dilution(4) == pytest.approx(0.5437, abs=1e-4)
    assert critical_dilution(5) == pytest.approx(0.5188, abs=1e-4)
    assert critical_dilution(60) == pytest.approx(0.5, abs=1e-12)
    for k in (3, 4, 5):
        for shift in (-0.01, 0.01):
            d = critical_dilution(k) + shift
            m = hierarchical(k, d)
            assert (float(m[0]) > float(m[1:].sum())) == (shift < 0)
            assert torch.allclose(solve(m, odds(k, d)), m, atol=1e-9) == (shift < 0)


def test_beyond_it_amplitudes_are_neither_those_nor_equal() -> None:
    m = solve(hierarchical(3, 0.7), odds(3, 0.7))
    torch.testing.assert_close(m, torch.tensor([0.2865, 0.2235, 0.1605], dtype=torch.double), atol=1e-9, rtol=0)


def test_amplitudes_of_the_parallel_state() -> None:
    assert parallel(3, 0.7) == pytest.approx(0.224, abs=6e-4)
    assert parallel(3, 0.85) == pytest.approx(0.129, abs=6e-4)
    assert parallel(5, 0.8) == pytest.approx(0.140, abs=6e-4)
    total, chances = columns(4).sum(1), odds(4, 0.6)
    assert parallel(4, 0.6) == pytest.approx(float((chances * total.abs()).sum()) / 4)
    equal = solve(hierarchical(3, 0.7), odds(3, 0.7), 0.2)
    torch.testing.assert_close(equal, torch.full((3,), 0.1735, dtype=torch.double), atol=1e-4, rtol=0)
    assert parallel(3, 0.7, 0.2) == pytest.approx(float(equal[0]), abs=1e-6)


@pytest.mark.parametrize("dilution", [0.2, 0.6])
def test_all_is_lost_above_the_critical_temperature(dilution: float) -> None:
    critical = critical_temperature(dilution)
    assert parallel(3, dilution, 1.02 * critical) < 1e-6 < 1e-2 < parallel(3, dilution, 0.98 * critical)
    assert stability(torch.zeros(3), odds(3, dilution), critical) == pytest.approx(1)
    found = solve(hierarchical(3, dilution), odds(3, dilution), torch.tensor([0.97, 1.03], dtype=torch.double) * critical)
    assert float(found[0].max()) > 0.05 and float(found[1].max()) < 1e-6


def test_a_single_pattern_is_curie_and_weiss() -> None:
    m = float(solve(hierarchical(1, 0.3), odds(1, 0.3), 0.5))
    assert m == pytest.approx(0.7 * math.tanh(m / 0.5)) and m > 0.4
    assert critical_temperature(0.3) == 0.7


def test_stability_is_what_a_small_change_becomes() -> None:
    chances, t = odds(3, 0.55), 0.2
    m = solve(hierarchical(3, 0.55), chances, t)
    small = 1e-5 * torch.eye(3, dtype=torch.double)
    jacobian = (solve(m + small, chances, t, steps=1) - solve(m - small, chances, t, steps=1)) / 2e-5
    assert stability(m, chances, t) == pytest.approx(float(torch.linalg.eigvalsh((jacobian + jacobian.T) / 2)[-1]), abs=1e-7)
    assert stability(m, chances, t) < 1


def test_the_phases() -> None:
    found = phase_diagram(3, [0.2, 0.7], [0.0, 0.2, 0.9])
    assert found.shape == (2, 3, 3)
    even = evenness(found)
    assert float(even[0, 0]) == pytest.approx(0.04) and float(even[0, 1]) < 1e-3
    assert float(even[1, 1]) == pytest.approx(1, abs=1e-3) and bool(even[:, 2].isnan().all())


@pytest.mark.parametrize(
    ("patterns", "dilution", "expected"),
    [
        (3, 0.2, (0.8, 0.16, 0.032)),
        (3, 0.4, (0.6, 0.24, 0.096)),
        (3, 0.55, (0.45, 0.2475, 0.136)),
        (3, 0.7, (0.2865, 0.2235, 0.1605)),
        (2, 0.7, (0.3, 0.21)),
    ],
)
def test_monte_carlo_at_zero_temperature_is_the_theorys(patterns: int, dilution: float, expected: tuple[float, ...]) -> None:
    drawn = diluted_patterns(patterns, 20_000, dilution, key(4))
    found = magnetisations(drawn, relax(stored(drawn).sweeper(), hierarchical_state(drawn, key(5))))
    torch.testing.assert_close(found, torch.tensor(expected), atol=0.02, rtol=0)


@pytest.mark.parametrize(("dilution", "temperature"), [(0.2, 0.3), (0.4, 0.2), (0.55, 0.1)])
def test_monte_carlo_at_a_temperature_is_the_theorys_for_its_patterns(dilution: float, temperature: float) -> None:
    drawn = diluted_patterns(3, 20_000, dilution, key(4))
    chain = heat_bath(stored(drawn).sweeper(), hierarchical_state(drawn, key(5)), 1 / temperature, key(6))
    found = torch.stack([magnetisations(drawn, state) for state in islice(chain, 60, 100)]).mean(0).double()
    expected = solve(hierarchical(3, dilution), counted_odds(drawn), temperature)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


# Bad input


def test_what_is_wrong_is_said() -> None:
    patterns = diluted_patterns(2, 10, 0.2, key())
    with pytest.raises(InputError, match=r"dilution = 1, expected 0 <= dilution < 1"):
        diluted_patterns(2, 10, 1)
    with pytest.raises(InputError, match=r"quality = 0, expected 0 < quality <= 1"):
        noisy_examples(patterns, 3, 0)
    with pytest.raises(InputError, match=r"overlap = 1, expected 0 < overlap < 1"):
        examples_needed(1, 0.3)
    with pytest.raises(InputError, match=r"patterns: 0.5 at \[1, 4\], expected -1, 1 or, for a blank, 0"):
        stored(patterns.index_put((torch.tensor(1), torch.tensor(4)), torch.tensor(0.5)))
    with pytest.raises(InputError, match=r"examples: shape \(2, 10\), expected \(K, M, N\)"):
        supervised(patterns)
    with pytest.raises(InputError, match="factors: some are not whole numbers"):
        Sweeper(patterns / 3)
    sweeper = stored(patterns).sweeper()
    with pytest.raises(InputError, match=r"shapes \(9,\) and \(9,\), expected both \(10,\) or \(R, 10\)"):
        relax(sweeper, torch.ones(9))
    with pytest.raises(InputError, match=r"beta = 0, expected above 0"):
        sweeper.thresholds(torch.ones(10), 0)
    with pytest.raises(InputError, match=r"11 patterns, expected 1 to 10"):
        odds(11, 0.5)
    with pytest.raises(InputError, match=r"temperature = 0, expected above 0"):
        stability(torch.ones(2), odds(2, 0.5), 0)


# The claims


def test_digits_are_hidden_from_the_network_and_alike_to_their_pattern() -> None:
    patterns, examples, blank = digits.digit_patterns(0)
    assert patterns.shape == (3, 512) and examples.shape == (3, 50, 512) and blank.shape == (3, 512)
    assert set(patterns.unique().tolist()) == set(examples.unique().tolist()) == {-1.0, 1.0}
    agreement = torch.einsum("kan,jn->kj", examples, patterns) / (50 * 512)
    assert bool((agreement.diagonal() > 0.6).all()) and bool((agreement - agreement.diag().diag()).abs().max() < 0.15)
    assert all(torch.equal(a, b) for a, b in zip(digits.digit_patterns(0), (patterns, examples, blank), strict=True))


@pytest.mark.soak
def test_a_seed_measures_what_the_claims_compare_and_the_picture_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BEFORE", 2)
    monkeypatch.setattr(synthetic, "SWEEPS", 2)
    measured = {**digits.measure(0, Path()), **synthetic.measure_theory(0, Path(), sites=2000, learning_sites=500)}
    assert all(math.isfinite(value) for value in measured.values())
    assert all(set(claim.pair) <= set(measured) for claim in PAPER.claims)
    assert PAPER.plot is not None and len(PAPER.plot({0: measured, 1: measured}).axes) == 4
