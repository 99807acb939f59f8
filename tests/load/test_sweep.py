"""The rates of a sweep, and the knee of its throughput-latency curve."""

import math

import numpy as np
import pytest

from alexnet_client.errors import BadInput
from alexnet_load.sweep import find_knee, sweep_rates

RATES = sweep_rates(10, 100, 10)


def test_the_rates_of_a_sweep_have_equal_ratios():
    assert sweep_rates(20, 320, 5) == pytest.approx([20, 40, 80, 160, 320])


@pytest.mark.parametrize(
    ("low", "high", "steps"),
    [(0, 10, 3), (-1, 10, 3), (10, 10, 3), (10, 5, 3), (1, math.inf, 3), (1, math.nan, 3), (1, 10, 1)],
)
def test_an_invalid_range_is_rejected(low, high, steps):
    with pytest.raises(BadInput, match="needs a positive rate, a higher one"):
        sweep_rates(low, high, steps)


@pytest.mark.parametrize(
    ("rates", "latencies_ms", "knee"),
    [
        ([10, 20, 30, 40, 50, 60], [2, 2.1, 2.2, 2.3, 20, 200], 3),
        ([5, 10, 20, 30, 40, 50, 60, 70], [math.inf, 2, 2.1, 2.2, 2.3, 20, 200, math.inf], 4),
        ([20, 40, 80, 158, 161, 159], [5, 5, 6, 9, 400, 1500], 3),
        ([10, 20, 30, 40, 50, 60, 70], [2, 2.1, 2.2, 2.3, 20, 200, 3], 3),
        (RATES, RATES, None),
        (RATES, np.array(RATES) * 2 + 5, None),
        (RATES, [100 / rate for rate in RATES], None),
        (RATES, [math.inf] * 10, None),
        ([50, 50, 50, 50], [1, 2, 3, 400], None),
        (RATES[:2], [1, 50], None),
        ([], [], None),
    ],
    ids=[
        *("corner", "rates without answers", "limit of the answered rate", "values after the highest latency"),
        *("straight", "straight with offset", "falling", "no answers", "one rate", "two points", "no point"),
    ],
)
def test_the_knee_is_the_corner_of_the_curve_and_a_curve_without_a_bend_has_none(rates, latencies_ms, knee):
    assert find_knee(rates, latencies_ms) == knee


def test_the_knee_of_a_queue_is_the_point_farthest_from_the_chord():
    """Response times of M/M/1 are 1 / (mu - lambda): at the knee, 1 / (mu - lambda) is the slope of the chord."""
    rates = np.linspace(100, 990, 90)
    slope = math.log(900 / 10) / 890
    assert rates[find_knee(rates, 1000 / (1000 - rates))] == pytest.approx(1000 - 1 / slope, abs=10)


@pytest.mark.parametrize(("latencies_ms", "noise"), [(np.full(10, 10.0), 0.05), (np.array(RATES), 0.03)])
def test_a_flat_or_straight_curve_with_noise_has_no_knee(latencies_ms, noise):
    for seed in range(50):
        random = np.random.default_rng(seed).standard_normal(10)
        assert find_knee(RATES, latencies_ms * np.exp(noise * random)) is None
