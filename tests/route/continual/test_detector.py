"""The detector's closed forms."""

import math

import pytest

from polytask.route.continual import ShiftDetector


def test_a_constant_window_and_the_first_one() -> None:
    detector = ShiftDetector(0.4, window=10)
    for _ in range(20):
        detector.accept(0.4)
    detector.refresh()
    assert detector.threshold == pytest.approx(0.4 + 0.015)
    fresh = ShiftDetector(math.log(2))
    assert list(fresh.losses) == [math.log(2)] and fresh.threshold == pytest.approx(math.log(2) + 0.015)
    fresh.observe(math.log(2) + 0.01)
    assert not fresh.alarmed()
    fresh.observe(1.0)
    assert fresh.alarmed()


def test_the_window_holds_the_last_losses_and_their_deviation_is_of_all_of_them() -> None:
    detector = ShiftDetector(0.7, window=3)
    for loss in (9.0, 1.0, 2.0, 3.0):
        detector.accept(loss)
    detector.refresh()
    assert list(detector.losses) == [1.0, 2.0, 3.0]
    assert detector.threshold == pytest.approx(2 + 3 * math.sqrt(2 / 3))


def test_smoothing_of_a_constant_loss_on_a_new_task() -> None:
    """s = L - (L - s0)(1 - beta)^k; here the first batch raises the alarm, with s = 0.44."""
    detector = ShiftDetector(0.7, beta=0.2)
    detector.smoothed, detector.threshold = 0.05, 0.1
    for k in range(1, 6):
        detector.observe(2.0)
        assert detector.smoothed == pytest.approx(2 - (2 - 0.05) * 0.8**k)
        assert detector.alarmed()
    assert pytest.approx(0.44) == 2 - (2 - 0.05) * 0.8


def test_the_alarm_comes_with_the_first_batch_that_lifts_the_mean_over_the_threshold() -> None:
    detector = ShiftDetector(0.7, beta=0.1)
    detector.smoothed, detector.threshold = 0.1, 1.0
    expected = next(k for k in range(1, 100) if 2 - (2 - 0.1) * 0.9**k > 1.0)
    for k in range(1, expected + 1):
        detector.observe(2.0)
        assert detector.alarmed() == (k == expected)


def test_an_expert_fits_by_the_batches_that_it_had_accepted() -> None:
    detector = ShiftDetector(0.7, beta=0.2)
    for loss in (0.6, 0.1):
        detector.accept(loss)
    assert detector.active == pytest.approx(0.2 * 0.1 + 0.8 * 0.6)
    for _ in range(50):
        detector.observe(5.0)  # batches of others count for s, and not for what fits
    detector.threshold = 0.45
    assert detector.fits(0.1) and not detector.fits(0.7)
    assert detector.smoothed and detector.smoothed > 4.9


def test_infinity_never_alarms() -> None:
    detector = ShiftDetector(0.7, beta=1.0, deviations=math.inf)
    for loss in (0.1, 0.1, 1e30):
        detector.observe(loss)
        detector.refresh()
        assert not detector.alarmed()
