"""Whether a run came to rest: noise is no trend, trends are noticed, the statistics are those of the books."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alexnet_load.steady import LEAST, Steadiness, judge_steadiness, mann_kendall, theil_sen, transient

SERIES = st.lists(st.integers(0, 20), min_size=4, max_size=30)


def noise(count: int, *, seed: int, spread: float, correlation: float = 0.0):
    """Around 1; neighbours as correlated as in an autoregression of order 1."""
    dice = np.random.default_rng(seed).standard_normal(count + 50)
    for place in range(1, len(dice)):
        dice[place] = correlation * dice[place - 1] + math.sqrt(1 - correlation**2) * dice[place]
    return np.exp(spread * dice[50:])


def judge(p50_ms, seconds: float = 0.5) -> Steadiness:
    return judge_steadiness([seconds * place for place in range(len(p50_ms))], list(p50_ms))


def alarms(series) -> int:
    """How many of 400 series are called unsteady."""
    return sum(judge(series(seed)).steady_from_s is None for seed in range(400))


@pytest.mark.parametrize("count", [10, 20, 60])
@pytest.mark.parametrize(("correlation", "share"), [(0.0, 0.03), (0.3, 0.03), (0.6, 0.07)])
def test_noise_is_called_unsteady_in_a_few_of_a_hundred_runs(count, correlation, share):
    """The stated shares, and three standard deviations of a count of 400 runs."""
    found = alarms(lambda seed: 5 * noise(count, seed=seed, spread=0.1, correlation=correlation))
    assert found <= 400 * share + 3 * math.sqrt(400 * share)


def test_heavy_tails_are_no_trend():
    assert alarms(lambda seed: 5 + np.random.default_rng(seed).standard_t(2, 60) ** 2) <= 400 * 0.03


@pytest.mark.parametrize("direction", [0.1, -0.1])
@pytest.mark.parametrize(("count", "spread"), [(36, 0.02), (60, 0.04)])
def test_a_change_by_a_tenth_is_noticed_in_nine_of_ten_runs(count, spread, direction):
    trend = 1 + direction * np.linspace(0, 1, count)
    assert alarms(lambda seed: 5 * trend * noise(count, seed=seed, spread=spread)) >= 360


def test_overload_is_told_in_seconds_by_which_response_times_grow():
    found = judge(20 + 310 * 0.5 * np.arange(40))
    assert found == Steadiness(
        None, "response times grow by 0.31 s each second: requests come faster than they are answered"
    )


@pytest.mark.parametrize("growth", [0.03, 0.3, 3.0])
@pytest.mark.parametrize("count", [12, 60])
def test_overload_is_noticed_however_strong_it_is(count, growth):
    for seed in range(20):
        p50_ms = (20 + 1000 * growth * 0.5 * np.arange(count)) * noise(count, seed=seed, spread=0.05)
        assert "requests come faster" in judge(p50_ms).reason


def test_slow_growth_is_told_by_its_share_of_the_median():
    assert judge(np.linspace(9, 11, 61)).reason == "response times grow by 20% in 30 s; warm up longer, or run longer"


def test_falling_response_times_are_not_steady_either():
    assert judge(np.linspace(11, 9, 61)).reason.startswith("response times fall by 20%")


def test_the_steady_part_begins_after_the_transient():
    starts = []
    for seed in range(50):
        p50_ms = 5 * noise(60, seed=seed, spread=0.02) * np.where(np.arange(60) < 12, 4.0, 1.0)
        starts.append(judge(p50_ms).steady_from_s)
    found = [start for start in starts if start is not None]
    assert len(found) >= 47
    assert min(found) == np.median(found) == 6.0  # twelve slices of half a second


def test_a_run_that_is_steady_from_its_begin_loses_nothing():
    assert judge(5 * noise(60, seed=0, spread=0.1)) == Steadiness(0.0)


def test_a_run_without_any_noise_is_steady():
    assert judge([5.0] * 20) == Steadiness(0.0)


def test_a_spike_in_the_middle_is_no_trend():
    p50_ms = 5 * noise(60, seed=1, spread=0.05)
    p50_ms[20:24] = 2000
    assert judge(p50_ms).steady_from_s is not None


@pytest.mark.parametrize("count", [0, 1, LEAST - 1])
def test_a_run_that_is_too_short_to_tell_is_not_called_steady(count):
    found = judge([5.0] * count + [None] * 3)
    assert found.steady_from_s is None
    assert found.reason == f"the run is too short to tell: {count} slices of time had answers, {LEAST} are needed"


@pytest.mark.parametrize("silence", [None, math.nan])
def test_a_run_with_silent_slices_is_not_steady(silence):
    found = judge([5.0] * 20 + [silence] * 3)
    assert found.steady_from_s is None
    assert found.reason.startswith("nothing was answered in 3 of 23 slices of time")


def test_a_single_silent_slice_is_passed_over():
    assert judge([None] + [5.0] * 20) == Steadiness(0.5)


@given(SERIES)
def test_the_trend_test_is_the_one_of_kendall(series):
    """scipy's tau is score / sqrt(pairs x untied pairs), from which the score comes back."""
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


@pytest.mark.parametrize("slope", [0.0, 0.02, 0.05])
def test_the_chance_agrees_with_scipy_where_nothing_is_tied(slope):
    values = slope * np.arange(40) + np.random.default_rng(3).standard_normal(40)
    expected = stats.kendalltau(np.arange(40), values, method="asymptotic").pvalue
    assert mann_kendall(values) == pytest.approx(expected, rel=0.06)  # scipy's has no correction of continuity


def test_values_that_follow_their_neighbours_prove_less():
    values = noise(60, seed=0, spread=0.1, correlation=0.6) + 0.002 * np.arange(60)
    plain = mann_kendall(values)
    assert plain < mann_kendall(values, residuals=values - 0.002 * np.arange(60))
    assert plain == mann_kendall(values, residuals=(-1.0) ** np.arange(60))


@given(SERIES, st.floats(0.1, 10))
def test_the_slope_is_the_one_of_theil_and_sen(series, step):
    times, values = step * np.arange(len(series)), np.array(series, np.float64)
    assert theil_sen(times, values) == pytest.approx(stats.theilslopes(values, times).slope, abs=1e-9)


def test_the_marginal_standard_error_rule_cuts_where_the_error_of_the_mean_is_least():
    values = np.concatenate([np.full(10, 9.0), 1 + 0.1 * (-1.0) ** np.arange(30)])
    errors = [stats.sem(values[cut:], ddof=0) for cut in range(21)]
    assert transient(values) == int(np.argmin(errors)) == 10


def test_a_straight_line_is_no_transient():
    assert transient(np.linspace(1, 2, 60)) == 0


def test_enough_values_for_a_judgement_are_left():
    assert transient(np.array([9.0] * 6 + [1.0] * 8)) == 6
    assert transient(np.array([9.0] * 6 + [1.0] * 7)) <= 5
