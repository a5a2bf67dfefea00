"""Timescales of neurons by themselves, and of their activity in the network, from its autocorrelation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from polytask.errors import InputError

LONGEST = 100.0


def isolated_timescale(tau: Tensor) -> Tensor:
    """The decay constant ``-1 / ln(1 - 1/tau)`` of a linear neuron by itself, in steps; 0 at ``tau = 1``."""
    if bool((tau < 1).any()):
        raise InputError(f"time constants down to {float(tau.min())}, expected at least 1")
    return -1 / torch.log1p(-1 / tau)


def autocorrelation(activity: Tensor, lags: int) -> Tensor:
    """``(T, trials, n)`` -> ``(lags + 1, n)``, 1 at lag 0: by a padded transform, unbiased, averaged over the trials.

    Each neuron's mean over time and trials is taken off. The sum of products at a lag is divided by their number,
    ``T - lag``. A neuron that never changes has NaN.
    """
    steps = len(activity)
    if not 0 < lags < steps:
        raise InputError(f"{lags} lags of {steps} steps, expected from 1 to {steps - 1}")
    centred = activity.double()
    centred = centred - centred.mean((0, 1))
    spectrum = torch.fft.rfft(centred, n=2 * steps, dim=0).abs().square()
    products = torch.fft.irfft(spectrum, n=2 * steps, dim=0)[: lags + 1].mean(1)
    products = products / torch.arange(steps, steps - lags - 1, -1, dtype=torch.double)[:, None]
    variance = products[0]
    still = variance <= 1e-12 * activity.double().square().mean((0, 1))
    return torch.where(still, torch.nan, products / torch.where(still, 1, variance))


class Decay(NamedTuple):
    """The slowest constant of the chosen fit, in steps, and whether that was the sum of two exponentials."""

    tau: float
    double: bool


def fit_decay(correlation: Tensor, longest: float = LONGEST, least: float = 0.05) -> Decay:
    """Fit ``a exp(-t / tau)`` and ``a (c exp(-t / tau_1) + (1 - c) exp(-t / tau_2))`` to lags 0, 1, ...; the better one's.

    Which is better says Akaike's criterion, ``2 k + n ln(RSS / n)`` with ``k`` constants and ``n`` lags. NaN where the
    correlation is not finite.

    Args:
        correlation: ``(lags + 1,)``, at least 6.
        longest: the bound of the constants; ``a`` and ``c`` are in [0, 1].
        least: a component with a smaller share of the sum does not count. The criterion takes errors of different lags for
            independent, which those of a correlation are not, so that the noise of long lags can pass for a slow component
            of almost no weight. The paper keeps the slower constant whatever its share: 0.
    """
    from scipy.optimize import curve_fit

    values = correlation.double().numpy()
    if len(values) < 6:
        raise InputError(f"a correlation at {len(values)} lags, expected at least 6")
    if not np.isfinite(values).all():
        return Decay(math.nan, False)
    lags = np.arange(len(values))
    below = np.flatnonzero(values < math.exp(-1))
    guess = float(np.clip(below[0] if len(below) else longest / 2, 0.5, longest / 2))

    def criterion(fitted: Any, constants: int) -> float:
        rss = float(np.square(values - fitted).sum())
        return 2 * constants + len(values) * math.log(max(rss / len(values), 1e-30))

    (a, tau), _ = curve_fit(_one, lags, values, (0.9, guess), bounds=([0, 1e-3], [1, longest]))
    best, chosen = criterion(_one(lags, a, tau), 2), Decay(float(tau), False)
    start, low, high = (0.9, 0.5, guess / 2, min(guess * 2, longest)), [0, 0, 1e-3, 1e-3], [1, 1, longest, longest]
    try:
        fitted, _ = curve_fit(_two, lags, values, start, bounds=(low, high), max_nfev=400)
    except RuntimeError:  # it has not converged: one exponential is what can be said
        return chosen
    if criterion(_two(lags, *fitted), 4) >= best:
        return chosen
    _, c, first, second = fitted
    return Decay(float(max(tau for tau, share in ((first, c), (second, 1 - c)) if share >= least)), True)


def _one(t: Any, a: float, tau: float) -> Any:
    return a * np.exp(-t / tau)


def _two(t: Any, a: float, c: float, first: float, second: float) -> Any:
    return a * (c * np.exp(-t / first) + (1 - c) * np.exp(-t / second))


def network_timescales(
    core: nn.Module, steps: int = 1000, burn_in: int = 100, trials: int = 20, lags: int = 100, seed: int = 0
) -> Tensor:
    """The timescale of each neuron's activity in the network, ``(n,)`` in steps, while it is driven by fair random bits.

    NaN for neurons that do not change. The paper's lengths are not known: these give errors of a few percent.

    Args:
        core: with a method ``states``, as `LeakyRNN` and `Gated`.
        steps: that are measured, after ``burn_in`` that are not.
        trials: sequences, over which correlations are averaged.
        lags: the longest lag that is fitted.
    """
    device = next(core.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (trials, burn_in + steps), generator=generator).float().to(device)
    with torch.no_grad():
        states: Tensor = core.states(bits)[burn_in:].cpu()  # type: ignore[operator]
    correlation = autocorrelation(states, lags)
    return torch.tensor([fit_decay(column).tau for column in correlation.T])
