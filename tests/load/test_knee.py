"""The rates of a sweep, and the knee of its curve."""

import math

import numpy as np
import pytest

from alexnet_client.errors import BadInput
from alexnet_load.knee import knee, sweep_rates

RATES = sweep_rates(10, 100, 10)


def test_rates_of_a_sweep_grow_by_the_same_factor():
    found = sweep_rates(20, 320, 5)
    assert found == pytest.approx([20, 40, 80, 160, 320])
    assert (found[0], found[-1]) == (20, 320)


@pytest.mark.parametrize(
    ("low", "high", "steps"),
    [(0, 10, 3), (-1, 10, 3), (10, 10, 3), (10, 5, 3), (1, math.inf, 3), (1, math.nan, 3), (1, 10, 1)],
)
def test_a_range_that_is_none_is_refused(low, high, steps):
    with pytest.raises(BadInput, match="from a positive rate to a higher one"):
        sweep_rates(low, high, steps)


def test_the_knee_is_the_corner_of_two_straight_lines():
    assert knee([10, 20, 30, 40, 50, 60], [2, 2.1, 2.2, 2.3, 20, 200]) == 3


def test_the_knee_of_a_queue_is_where_its_distance_from_the_chord_is_greatest():
    """Response times of M/M/1 are 1 / (mu - lambda): the knee solves 1 / (mu - lambda) = the slope of the chord."""
    rates = np.linspace(100, 990, 90)
    slope = math.log(900 / 10) / 890
    assert rates[knee(rates, 1000 / (1000 - rates))] == pytest.approx(1000 - 1 / slope, abs=10)


@pytest.mark.parametrize("latencies_ms", [RATES, np.array(RATES) * 2 + 5])
def test_a_straight_line_has_no_knee(latencies_ms):
    assert knee(RATES, latencies_ms) is None


def test_a_flat_curve_has_no_knee_in_its_noise():
    for seed in range(50):
        dice = np.random.default_rng(seed)
        assert knee(RATES, 10 * np.exp(0.05 * dice.standard_normal(10))) is None


def test_a_line_has_no_knee_in_its_noise():
    for seed in range(50):
        dice = np.random.default_rng(seed)
        assert knee(RATES, np.array(RATES) * np.exp(0.03 * dice.standard_normal(10))) is None


def test_a_curve_that_falls_has_no_knee():
    assert knee(RATES, [100 / rate for rate in RATES]) is None


def test_points_without_answers_do_not_move_the_place_of_the_knee():
    assert knee([5, 10, 20, 30, 40, 50, 60, 70], [math.inf, 2, 2.1, 2.2, 2.3, 20, 200, math.inf]) == 4


def test_answered_rates_that_stop_rising_have_their_knee_at_the_limit():
    assert knee([20, 40, 80, 158, 161, 159], [5, 5, 6, 9, 400, 1500]) == 3


def test_latency_that_falls_again_under_overload_is_beyond_the_curve():
    assert knee([10, 20, 30, 40, 50, 60, 70], [2, 2.1, 2.2, 2.3, 20, 200, 3]) == 3


@pytest.mark.parametrize("count", [0, 1, 2])
def test_two_points_have_no_knee(count):
    assert knee(RATES[:count], [1, 50][:count]) is None


def test_a_sweep_that_nobody_answered_has_no_knee():
    assert knee(RATES, [math.inf] * 10) is None


def test_one_rate_again_and_again_has_no_knee():
    assert knee([50, 50, 50, 50], [1, 2, 3, 400]) is None
