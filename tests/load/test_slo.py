"""SLOs, and the search for the highest rate that meets one, with queues whose capacity is known."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alexnet_client.errors import BadInput
from alexnet_load.slo import Slo, Trial, parse_slo
from alexnet_load.slo_search import CONFIDENCE, CONFIRMATIONS, LOWER_BOUNDS, search

P99 = Slo(99, 50)


def queue(*, served: float, seconds: float, seed: int, percentile: float = 99) -> Callable[[float], Trial]:
    """Trials with an M/M/1 queue: waiting times by Lindley's recursion, as a cumulated sum minus its running minimum."""
    rng = np.random.default_rng(seed)

    def trial(rate: float) -> Trial:
        count = max(1, rng.poisson(rate * seconds))
        arrived = np.cumsum(rng.exponential(1 / rate, count))
        service = rng.exponential(1 / served, count)
        surplus = np.concatenate([[0.0], np.cumsum(service[:-1] - np.diff(arrived))])
        response = surplus - np.minimum.accumulate(surplus) + service
        measured = response[count // 5 :]
        answered = np.count_nonzero(arrived + response <= arrived[-1])
        value_ms = 1000 * float(np.percentile(measured, percentile))
        return Trial(rate, value_ms, 0.0, len(measured), answered / arrived[-1])

    return trial


def sharp(limit: float, *, requests: int = 10_000) -> Callable[[float], Trial]:
    """Trials without noise: the SLO is met up to a rate."""
    return lambda rate: Trial(rate, 10 if rate <= limit else 1000, 0.0, requests, min(rate, limit))


def scripted(results: dict[float, str]) -> tuple[Callable[[float], Trial], list[float]]:
    """Trials that meet (+) or violate (-) the SLO or are limited by the load generator (s) in turn, by rate; and the tried rates."""
    rates: list[float] = []
    turns = {rate: itertools.cycle(turn) for rate, turn in results.items()}

    def trial(rate: float) -> Trial:
        rates.append(rate)
        turn = next(turns[rate]) if rate in turns else "-"
        return Trial(rate, 10 if turn == "+" else 1000, 0.0, 10_000, rate, "it is busy" if turn == "s" else "")

    return trial, rates


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("p99=50ms", Slo(99, 50)),
        ("p99.9=0.2s,errors=0.1%", Slo(99.9, 200, 0.001)),
        ("errors=0.05, p50=900us", Slo(50, 0.9, 0.05)),
        (" p95 = 10 ms ", Slo(95, 10)),
    ],
)
def test_an_slo_is_parsed_with_its_units(text, slo):
    assert parse_slo(text) == slo


@pytest.mark.parametrize(
    "text",
    [
        "", "p99", "p99=50", "99=50ms", "p99=50min", "p0=50ms", "p100=50ms", "p99=0ms", "p99=-1ms", "p9.9.9=1ms", "errors=1%",
        "p99=50ms,p50=5ms", "p99=50ms,errors=200%", "p99=50ms,errors=-1%", "p99=50ms,errors=1%,errors=2%", "p99=50ms,rate=5",
    ],
)  # fmt: skip
def test_an_invalid_slo_is_rejected_with_an_example(text):
    with pytest.raises(BadInput, match="use a form such as p99=50ms"):
        parse_slo(text)


def test_an_slo_is_met_up_to_both_limits():
    cases = ((50, 0.01), (50.1, 0), (5, 0.011), (math.inf, 0))
    assert [Slo(99, 50, 0.01).met(*each) for each in cases] == [True, False, False, False]


@pytest.mark.parametrize(("percentile", "requests"), [(50, 20), (99, 1000), (99.9, 10_000), (99.99, 100_000)])
def test_a_percentile_needs_ten_requests_above_it(percentile, requests):
    assert Slo(percentile, 50).min_requests == requests


@pytest.mark.parametrize(
    ("served", "percentile", "limit_ms", "start"), [(500, 99, 50, 50), (500, 95, 15, 5000), (200, 99, 100, 50)]
)
def test_the_capacity_of_a_queue_is_found_within_ten_percent(served, percentile, limit_ms, start):
    """The response time of M/M/1 is exponential with rate mu - lambda: its quantile q is -ln(1 - q) / (mu - lambda)."""
    truth = served + math.log(1 - percentile / 100) / (limit_ms / 1000)
    slo = Slo(percentile, limit_ms)
    rates = [
        search(queue(served=served, seconds=20, seed=seed, percentile=percentile), slo, start_rate=start).rate
        for seed in range(20)
    ]
    assert sum(abs(rate / truth - 1) < 0.1 for rate in rates) >= 19
    assert 0.92 < np.median(rates) / truth < 1.02  # the lower end, reduced by 5 % if it is not confirmed


@given(st.floats(1, 10_000), st.floats(1, 10_000), st.sampled_from([0.02, 0.05, 0.2]))
def test_without_noise_the_result_is_within_the_precision(limit, start, precision):
    found = search(sharp(limit), P99, start_rate=start, precision=precision)
    if limit > start / 1024:
        assert found.rate <= limit < found.violated_at <= found.rate * (1 + precision)
        assert found.end_reason == ""


BUSY = "the load generator was the bottleneck at"
ONE_STEP = {"max_rate": 190, "precision": 0.99}
"""A search that tries 100 and 190 requests/s."""


@pytest.mark.parametrize(
    ("results", "options", "rate", "violated_at", "end_reason"),
    [
        ({100: "-++++++", 190: "-"}, ONE_STEP, 100, 190, ""),
        ({100: "s++++++++", 190: "-s"}, ONE_STEP, 100, 190, ""),
        ({100: "s", 50: "-", 25: "+"}, {"precision": 0.99}, 25, math.sqrt(25 * 50), ""),
        ({100: "+", 200: "+", 400: "s"}, {}, 200, None, f"at least 200 requests/s: {BUSY} 400 requests/s (it is busy)"),
        ({100: "s", 50: "s", 25: "+"}, {}, 25, None, f"at least 25 requests/s: {BUSY} 50 requests/s (it is busy)"),
        (
            {100: "+", 200: "+", 250: "+"},
            {"max_rate": 250},
            250,
            None,
            "at least 250 requests/s: this is the maximum rate",
        ),
        ({}, {}, 0, 100 / 1024, "the SLO is violated at all rates down to 0.0977 requests/s"),
    ],
    ids=[
        "majority",
        "limited trial repeated",
        "fails below limited",
        "limited at 400",
        "limited at 100 and 50",
        "maximum",
        "always violated",
    ],
)
def test_a_search_ends_with_its_bounds_and_the_reason(results, options, rate, violated_at, end_reason):
    trial, rates = scripted(results)
    found = search(trial, P99, start_rate=100, **options)
    assert (found.rate, found.violated_at, found.end_reason) == (rate, violated_at, end_reason)
    assert max(rates) <= options.get("max_rate", 400)
    assert bool(found.confidence) == bool(rate)


@pytest.mark.parametrize(("value_ms", "rate"), [(1000, 0), (10, 200)])
def test_a_trial_limited_by_the_load_generator_counts_only_if_it_meets_the_slo(value_ms, rate):
    found = search(lambda rate: Trial(rate, value_ms, 0, 10_000, rate, "it is busy"), P99, start_rate=100, max_rate=200)
    assert found.rate == rate
    assert found.end_reason.startswith(BUSY) == (rate == 0)


CONFIRMED = (
    "{} of 5 confirmation trials of at least 10,000 requests met the SLO: "
    "with 95% confidence, at least {}% of such trials do"
)


@pytest.mark.parametrize(
    ("turn", "repeats", "rates", "confidence"),
    [
        ("+", 3, [100] * 2 + [190] * 2 + [100] * CONFIRMATIONS, CONFIRMED.format(5, 55)),
        ("+++-+++", 3, [100] * 2 + [190] * 2 + [100] * CONFIRMATIONS, CONFIRMED.format(4, 34)),
        ("+", 1, [100, 190], "1 of 1 trials met the SLO; there were no confirmation trials"),
    ],
    ids=["five", "four", "none"],
)
def test_no_trial_follows_a_decision_and_only_confirmation_trials_count(turn, repeats, rates, confidence):
    trial, tried = scripted({100: turn})
    assert search(trial, P99, start_rate=100, repeats=repeats, **ONE_STEP).confidence == confidence
    assert tried == rates


def test_a_rate_without_confirmation_is_reduced_by_the_precision():
    trial, rates = scripted({100: "++--+--", 80: "+", 120: "-"})
    found = search(trial, P99, start_rate=100, max_rate=120, precision=0.25)
    assert (found.rate, found.violated_at) == (80, 100)
    assert rates == [100] * 2 + [120] * 2 + [100] * 2 + [80] * CONFIRMATIONS


def test_overload_violates_the_slo_even_if_the_trial_is_too_short_to_exceed_it():
    """The response times grow and the answers fall behind; the trial ends before 50 ms are exceeded."""
    assert not Trial(120, 40, 0, 10_000, 100, steady=False).meets(P99)
    assert Trial(120, 40, 0, 10_000, 100, steady=True).meets(P99)
    assert Trial(120, 40, 0, 10_000, 119, steady=False).meets(P99)
    assert not Trial(120, 40, 0.001, 10_000, 120).meets(P99), "no request may fail"
    assert Trial(120, 40, 0, 30, 100, steady=False).meets(P99)  # of 30 requests, five may be missing by chance


def test_the_number_of_trials_is_limited():
    found = search(sharp(300), P99, start_rate=100, max_trials=7)
    assert (len(found.trials), found.rate, found.violated_at) == (7, 200, 400)
    assert found.end_reason == "the search ended after 7 trials; use longer trials to reduce the noise"
    assert found.confidence.endswith("there were no confirmation trials")


def test_short_and_unsteady_trials_are_reported():
    found = search(lambda rate: Trial(rate, 10, 0, 400, rate, steady=False), P99, start_rate=10, max_rate=10)
    assert found.confidence.endswith(
        "; p99 of 400 requests is imprecise, use trials of 1,000 requests; 7 of 7 trials did not reach a steady state"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_rate": 0}, {"start_rate": -1}, {"start_rate": math.nan}, {"start_rate": 10, "max_rate": 5},
        {"start_rate": 1, "precision": 0}, {"start_rate": 1, "precision": 1}, {"start_rate": 1, "repeats": 0},
        {"start_rate": 1, "max_trials": 0},
    ],
)  # fmt: skip
def test_invalid_arguments_of_a_search_are_rejected(wrong):
    with pytest.raises(BadInput, match="a search needs a start rate above 0"):
        search(sharp(10), P99, **wrong)


@pytest.mark.parametrize("successes", [4, 5])
def test_the_lower_bounds_are_those_of_clopper_and_pearson(successes):
    expected = stats.beta.ppf(1 - CONFIDENCE, successes, CONFIRMATIONS - successes + 1)
    assert LOWER_BOUNDS[successes] == pytest.approx(expected, abs=1e-3)
