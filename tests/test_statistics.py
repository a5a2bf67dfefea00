"""The statistics against SciPy's, closed forms, and their coverage on simulated data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from polytask.errors import InputError
from polytask.statistics import bootstrap_interval, holm, paired_p_value, t_interval

numbers = st.lists(st.floats(-100, 100), min_size=3, max_size=30).filter(lambda values: np.std(values) > 1e-3)


@given(numbers)
def test_t_interval_and_p_value_agree_with_scipy(values: list[float]) -> None:
    expected = stats.ttest_1samp(values, 0.0)
    interval = t_interval(values)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-6, abs=1e-9)
    assert paired_p_value(values) == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


@given(numbers, st.floats(0.5, 0.99))
def test_the_interval_excludes_zero_exactly_when_p_is_small(values: list[float], level: float) -> None:
    interval = t_interval(values, level)
    assert (interval.low > 0 or interval.high < 0) == (paired_p_value(values) < 1 - level)


def test_equal_differences_have_no_width() -> None:
    assert t_interval([0.1] * 3).low == pytest.approx(0.1)
    assert bootstrap_interval([2.0] * 5).high == 2.0
    assert paired_p_value([0.1] * 3) == 0.0
    assert paired_p_value([0.0] * 3) == 1.0


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_interval_covers_the_mean_of_skewed_data(method: str) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        interval = bootstrap_interval(rng.exponential(size=60), method=method, resamples=500, seed=seed)
        covered += interval.low <= 1.0 <= interval.high
    assert 86 <= covered <= 99


def test_bca_follows_skewness_and_the_seed_decides() -> None:
    values = np.random.default_rng(1).exponential(size=40)
    bca, percentile = bootstrap_interval(values), bootstrap_interval(values, method="percentile")
    assert bca.low > percentile.low and bca.high > percentile.high
    assert bootstrap_interval(values) == bca
    assert bootstrap_interval(values, statistic=np.median).mean == np.median(values)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    corrected = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    rejected = np.zeros(len(p_values), dtype=bool)
    for step, index in enumerate(order):
        if p_values[index] * (len(p_values) - step) > 0.05:
            break
        rejected[index] = True
    assert ((corrected <= 0.05) == rejected).all()
    assert (corrected >= p_values).all() and (corrected <= 1).all()


@pytest.mark.parametrize("values", [[1.0], [[1.0, 2.0]], [1.0, float("nan")]])
def test_what_has_no_interval_is_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match="expected"):
        t_interval(values)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"level 95, expected"):
        t_interval([1.0, 2.0], level=95)
    with pytest.raises(InputError, match="between 0 and 1"):
        holm([0.5, 1.5])
