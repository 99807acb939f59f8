"""Steady state: noise is not a trend, trends are detected, and the statistics agree with scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alexnet_load.steady_state import MIN_WINDOWS, SteadyState, find_steady_state, mann_kendall, theil_sen, transient

SERIES_COUNT = 100
SERIES = st.lists(st.integers(0, 20), min_size=4, max_size=30)


def noise(count: int, *, seed: int, spread: float, correlation: float = 0.0):
    """Values around 1 with the correlation of a first-order autoregression."""
    values = np.random.default_rng(seed).standard_normal(count + 50)
    for place in range(1, len(values)):
        values[place] = correlation * values[place - 1] + math.sqrt(1 - correlation**2) * values[place]
    return np.exp(spread * values[50:])


def find(p50_ms, seconds: float = 0.5) -> SteadyState:
    return find_steady_state([seconds * place for place in range(len(p50_ms))], list(p50_ms))


def alarms(series) -> int:
    """How many series have no steady state."""
    return sum(find(series(seed)).from_s is None for seed in range(SERIES_COUNT))


@pytest.mark.parametrize(
    ("count", "correlation", "share"),
    [(10, 0.0, 0.03), (10, 0.6, 0.07), (20, 0.3, 0.03), (60, 0.0, 0.03), (60, 0.6, 0.07)],
)
def test_noise_is_rarely_taken_for_a_trend(count, correlation, share):
    """The shares of the docstring, plus three standard deviations of the count."""
    found = alarms(lambda seed: 5 * noise(count, seed=seed, spread=0.1, correlation=correlation))
    assert found <= SERIES_COUNT * share + 3 * math.sqrt(SERIES_COUNT * share)


def test_heavy_tails_are_not_a_trend():
    assert alarms(lambda seed: 5 + np.random.default_rng(seed).standard_t(2, 60) ** 2) <= SERIES_COUNT * 0.03


@pytest.mark.parametrize("direction", [0.1, -0.1])
@pytest.mark.parametrize(("count", "spread"), [(36, 0.02), (60, 0.04)])
def test_a_change_of_ten_percent_is_detected_in_nine_of_ten_runs(count, spread, direction):
    trend = 1 + direction * np.linspace(0, 1, count)
    assert alarms(lambda seed: 5 * trend * noise(count, seed=seed, spread=spread)) >= 0.88 * SERIES_COUNT


@pytest.mark.parametrize("growth", [0.03, 0.3, 3.0])
@pytest.mark.parametrize("count", [12, 60])
def test_weak_and_strong_overload_is_detected(count, growth):
    for seed in range(20):
        p50_ms = (20 + 1000 * growth * 0.5 * np.arange(count)) * noise(count, seed=seed, spread=0.05)
        assert "requests arrive faster" in find(p50_ms).reason


@pytest.mark.parametrize(
    ("values", "from_s", "reason"),
    [
        (
            20 + 155 * np.arange(40),
            None,
            "the response time grows by 0.31 s per second, because requests arrive faster",
        ),
        (np.linspace(9, 11, 61), None, "the response time grows by 20% in 30 s; use a longer warm-up or a longer run"),
        (np.linspace(11, 9, 61), None, "the response time falls by 20% in 30 s; use a longer warm-up or a longer run"),
        (5 * noise(60, seed=0, spread=0.1), 0.0, ""),
        ([5.0] * 20, 0.0, ""),
        ([None] + [5.0] * 20, 0.5, ""),
        ([5.0] * 20 + [None] * 3, None, "3 of 23 time windows contain no answer"),
        ([5.0] * 20 + [math.nan] * 3, None, "3 of 23 time windows contain no answer"),
        ([None] * 3, None, f"the run is too short: 0 time windows contain answers, {MIN_WINDOWS} are needed"),
        ([5.0] * (MIN_WINDOWS - 1), None, f"the run is too short: {MIN_WINDOWS - 1} time windows contain answers"),
    ],
    ids=["overload", "rise", "fall", "noise", "constant", "one gap", "gaps", "NaN", "no answers", "short"],
)
def test_the_start_of_the_steady_state_or_the_reason_for_its_absence_is_found(values, from_s, reason):
    found = find(values)
    assert found.from_s == from_s
    assert found.reason.startswith(reason)
    assert bool(found.reason) == bool(reason)


def test_the_steady_state_starts_after_the_transient_and_a_peak_is_not_a_trend():
    starts = []
    for seed in range(50):
        p50_ms = 5 * noise(60, seed=seed, spread=0.02) * np.where(np.arange(60) < 12, 4.0, 1.0)
        starts.append(find(p50_ms).from_s)
    found = [start for start in starts if start is not None]
    assert len(found) >= 47
    assert min(found) == np.median(found) == 6.0  # twelve windows of half a second
    peak = 5 * noise(60, seed=1, spread=0.05)
    peak[20:24] = 2000
    assert find(peak).from_s is not None


@given(SERIES)
def test_the_trend_test_agrees_with_kendalls_tau(series):
    """The tau of scipy is score / sqrt(pairs x untied pairs), which gives the score."""
    values = np.array(series, np.float64)
    count = len(values)
    tau = stats.kendalltau(np.arange(count), values).statistic
    if np.ptp(values) == 0:
        assert mann_kendall(values) == 1
        return
    pairs, (_, ties) = count * (count - 1) / 2, np.unique(values, return_counts=True)
    score = tau * math.sqrt(pairs * (pairs - (ties * (ties - 1) / 2).sum()))
    variance = (count * (count - 1) * (2 * count + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
    expected = 2 * stats.norm.sf(max(0.0, abs(score) - 1) / math.sqrt(variance))
    assert mann_kendall(values) == pytest.approx(expected, abs=1e-9)


def test_correlated_values_are_less_significant():
    values = noise(60, seed=0, spread=0.1, correlation=0.6) + 0.002 * np.arange(60)
    plain = mann_kendall(values)
    assert plain < mann_kendall(values, residuals=values - 0.002 * np.arange(60))
    assert plain == mann_kendall(values, residuals=(-1.0) ** np.arange(60))


@given(SERIES, st.floats(0.1, 10))
def test_the_slope_agrees_with_theil_and_sen(series, step):
    times, values = step * np.arange(len(series)), np.array(series, np.float64)
    assert theil_sen(times, values) == pytest.approx(stats.theilslopes(values, times).slope, abs=1e-9)


def test_the_transient_ends_where_the_standard_error_is_smallest():
    values = np.concatenate([np.full(10, 9.0), 1 + 0.1 * (-1.0) ** np.arange(30)])
    errors = [stats.sem(values[cut:], ddof=0) for cut in range(21)]
    assert transient(values) == int(np.argmin(errors)) == 10


@pytest.mark.parametrize(
    ("values", "lengths"),
    [(np.linspace(1, 2, 60), [0]), ([9.0] * 6 + [1.0] * 8, [6]), ([9.0] * 6 + [1.0] * 7, range(6))],
    ids=["straight line", "minimum length", "shorter"],
)
def test_a_straight_line_has_no_transient_and_the_minimum_number_of_windows_remains(values, lengths):
    assert transient(np.array(values)) in lengths
