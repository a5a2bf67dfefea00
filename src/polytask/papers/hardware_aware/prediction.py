"""How well predictors rank networks that they have not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polytask.claim import Measurements
from polytask.papers.hardware_aware.architecture import SPACE
from polytask.papers.hardware_aware.data import EVALUATIONS, LATENCIES, evaluations, latencies, networks
from polytask.shrink.search import Predictor

FILES = (EVALUATIONS, LATENCIES)
SAMPLES = (100, 250, 500, 1000)
HELD_OUT = 500
LEAST_TAU, LARGEST_ERROR = 0.86, 0.5
"""Below every rank correlation of the paper's table of latency predictors; and percent of top-1."""
GPUS, BATCHES = ("2080ti", "titan_rtx", "titan_xp", "v100"), (1, 32, 64)


def measure_prediction(seed: int, data: Path) -> Measurements:
    """``"top1 error <n>"`` (%) and ``"top1 tau <n>"`` of ridge regression with n training rows, ``"chosen ..."`` of the
    better of ridge and support vectors; ``"<gpu>_<batch> tau"`` of latencies with 1,000, and the ``"least tau at batch
    <batch>"`` over the GPUs. Always 500 others are predicted."""
    rows, top1, _ = networks(evaluations(data))
    features = SPACE.features(rows)
    order = np.random.default_rng(seed).permutation(len(rows))
    measured: dict[str, float] = {}
    for name, predictor in (("top1", Predictor(["ridge"], seed)), ("chosen", Predictor(seed=seed))):
        for count in SAMPLES:
            error, tau = _scores(predictor, features, top1, order, count)
            measured |= {f"{name} error {count}": error, f"{name} tau {count}": tau}
    features, times = latencies(data)
    order = np.random.default_rng(seed).permutation(len(features))
    for batch in BATCHES:
        taus = [
            _scores(Predictor(["ridge"], seed), features, times[f"{gpu}_{batch}"], order, max(SAMPLES))[1] for gpu in GPUS
        ]
        measured |= {f"{gpu}_{batch} tau": tau for gpu, tau in zip(GPUS, taus, strict=True)}
        measured[f"least tau at batch {batch}"] = min(taus)
    return {**measured, "0.86": LEAST_TAU, "0.5 %": LARGEST_ERROR}


def _scores(
    predictor: Predictor, features: NDArray[np.float64], labels: NDArray[np.float64], order: NDArray[np.intp], count: int
) -> tuple[float, float]:
    """The mean absolute error in percent, and Kendall's tau."""
    from scipy.stats import kendalltau

    test, train = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + count]
    predicted = predictor.fit(features[train], labels[train])(features[test])
    error = 100 * np.abs(predicted / labels[test] - 1).mean()
    return float(error), float(kendalltau(predicted, labels[test]).statistic)
