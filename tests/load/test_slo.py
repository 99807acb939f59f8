"""Objectives as people write them, and the search for the highest rate that keeps one: against queues of known answer."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alexnet_client.errors import BadInput
from alexnet_load.slo import CONFIRM, Objective, Trial, lower_bound, parse_objective, search

P99 = Objective(99, 50)


def queue(*, served: float, seconds: float, seed: int, percentile: float = 99) -> Callable[[float], Trial]:
    """Trials of M/M/1: waiting times by Lindley's recursion, as a cumulated sum less its least value so far."""
    dice = np.random.default_rng(seed)

    def trial(rate: float) -> Trial:
        count = max(1, dice.poisson(rate * seconds))
        arrived = np.cumsum(dice.exponential(1 / rate, count))
        service = dice.exponential(1 / served, count)
        surplus = np.concatenate([[0.0], np.cumsum(service[:-1] - np.diff(arrived))])
        response = surplus - np.minimum.accumulate(surplus) + service
        measured = response[count // 5 :]
        answered = np.count_nonzero(arrived + response <= arrived[-1])
        value_ms = 1000 * float(np.percentile(measured, percentile))
        return Trial(rate, value_ms, 0.0, len(measured), answered / arrived[-1])

    return trial


def sharp(limit: float, *, requests: int = 10_000) -> Callable[[float], Trial]:
    """Trials without noise: the objective is kept up to a rate."""
    return lambda rate: Trial(rate, 10 if rate <= limit else 1000, 0.0, requests, min(rate, limit))


def scripted(verdicts: dict[float, str]) -> tuple[Callable[[float], Trial], list[float]]:
    """Trials that keep (+), break (-) or are limited by the sender (s) in turns, by rate; and the rates as they are tried."""
    rates: list[float] = []
    turns = {rate: itertools.cycle(turn) for rate, turn in verdicts.items()}

    def trial(rate: float) -> Trial:
        rates.append(rate)
        turn = next(turns[rate]) if rate in turns else "-"
        return Trial(rate, 10 if turn == "+" else 1000, 0.0, 10_000, rate, "it was busy" if turn == "s" else "")

    return trial, rates


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("p99=50ms", Objective(99, 50)),
        ("p99.9=0.2s,errors=0.1%", Objective(99.9, 200, 0.001)),
        ("errors=0.05, p50=900us", Objective(50, 0.9, 0.05)),
        (" p95 = 10 ms ", Objective(95, 10)),
    ],
)
def test_an_objective_is_read_in_the_units_that_people_use(text, objective):
    assert parse_objective(text) == objective


@pytest.mark.parametrize(
    "text",
    [
        "", "p99", "p99=50", "99=50ms", "p99=50min", "p0=50ms", "p100=50ms", "p99=0ms", "p99=-1ms", "p9.9.9=1ms", "errors=1%",
        "p99=50ms,p50=5ms", "p99=50ms,errors=200%", "p99=50ms,errors=-1%", "p99=50ms,errors=1%,errors=2%", "p99=50ms,rate=5",
    ],
)  # fmt: skip
def test_what_is_no_objective_is_refused_with_an_example(text):
    with pytest.raises(BadInput, match="it is such as p99=50ms"):
        parse_objective(text)


@given(
    st.sampled_from([50, 90, 95, 99, 99.9]),
    st.integers(1, 10**6),
    st.sampled_from(["us", "ms", "s"]),
    st.integers(0, 100),
)
def test_an_objective_that_is_written_is_read_again(percentile, limit, unit, errors):
    found = parse_objective(f"p{percentile:g}={limit}{unit},errors={errors}%")
    assert found == Objective(percentile, limit * {"us": 0.001, "ms": 1, "s": 1000}[unit], errors / 100)


def test_an_objective_is_kept_up_to_both_of_its_limits():
    objective = Objective(99, 50, 0.01)
    assert objective.kept(50, 0.01)
    assert not objective.kept(50.1, 0)
    assert not objective.kept(5, 0.011)
    assert not objective.kept(math.inf, 0)


@pytest.mark.parametrize(("percentile", "requests"), [(50, 20), (99, 1000), (99.9, 10_000), (99.99, 100_000)])
def test_a_percentile_needs_ten_requests_beyond_it(percentile, requests):
    assert Objective(percentile, 50).least_requests == requests


@pytest.mark.parametrize("start", [50, 5000])
@pytest.mark.parametrize(
    ("served", "percentile", "limit_ms"), [(500, 99, 50), (500, 95, 15), (200, 99, 100)], ids=["fast", "faster", "slow"]
)
def test_the_rate_of_a_queue_is_found_within_a_tenth(served, percentile, limit_ms, start):
    """M/M/1's response time is exponential with rate mu - lambda: its quantile q is -ln(1 - q) / (mu - lambda)."""
    truth = served + math.log(1 - percentile / 100) / (limit_ms / 1000)
    objective = Objective(percentile, limit_ms)
    rates = [
        search(queue(served=served, seconds=20, seed=seed, percentile=percentile), objective, start_rate=start).rate
        for seed in range(40)
    ]
    assert sum(abs(rate / truth - 1) < 0.1 for rate in rates) >= 38
    assert 0.92 < np.median(rates) / truth < 1.02  # a lower end, and down one step of 5 % where it is not confirmed


@given(st.floats(1, 10_000), st.floats(1, 10_000), st.sampled_from([0.02, 0.05, 0.2]))
def test_without_noise_the_limit_is_within_the_precision(limit, start, precision):
    found = search(sharp(limit), P99, start_rate=start, precision=precision)
    if limit > start / 1024:
        assert found.rate <= limit < found.failed <= found.rate * (1 + precision)


def test_a_search_from_above_comes_down():
    found = search(sharp(10), P99, start_rate=1000)
    assert found.rate <= 10 < found.failed
    assert found.why == ""


def test_one_unlucky_trial_does_not_end_the_search():
    trial, _ = scripted({100: "-++++++", 190: "-"})
    assert search(trial, P99, start_rate=100, most_rate=190, precision=0.99).rate == 100


def test_one_lucky_trial_does_not_pass_a_rate():
    trial, _ = scripted({100: "+", 190: "+--"})
    found = search(trial, P99, start_rate=100, most_rate=190, precision=0.99)
    assert (found.rate, found.failed) == (100, 190)


def test_a_decided_rate_is_not_tried_further():
    trial, rates = scripted({100: "+", 200: "-"})
    search(trial, P99, start_rate=100, most_rate=190, precision=0.99)
    assert rates == [100] * 2 + [190] * 2 + [100] * CONFIRM


def test_a_rate_that_fresh_trials_do_not_confirm_is_lowered_by_the_precision():
    trial, rates = scripted({100: "++--+--", 80: "+", 120: "-"})
    found = search(trial, P99, start_rate=100, most_rate=120, precision=0.25)
    assert (found.rate, found.failed) == (80, 100)
    assert rates == [100] * 2 + [120] * 2 + [100] * 2 + [80] * CONFIRM


def test_a_single_repeat_believes_each_trial_and_confirms_none():
    trial, rates = scripted({100: "+", 200: "-"})
    found = search(trial, P99, start_rate=100, most_rate=190, precision=0.99, repeats=1)
    assert rates == [100, 190]
    assert found.confidence == "1 of 1 trials kept it; no fresh ones confirmed it"


def test_the_sender_as_the_limit_is_no_failure_of_the_server():
    trial, rates = scripted({100: "+", 200: "+", 400: "s"})
    found = search(trial, P99, start_rate=100)
    assert (found.rate, found.failed) == (200, None)
    assert found.why == "at least 200 requests/s: the sender was the limit at 400 requests/s (it was busy)"
    assert rates.count(400) == 2


def test_a_sender_that_was_the_limit_once_is_tried_again():
    trial, _ = scripted({100: "s++++++++", 190: "-s"})
    found = search(trial, P99, start_rate=100, most_rate=190, precision=0.99)
    assert (found.rate, found.failed, found.why) == (100, 190, "")


def test_a_sender_that_is_the_limit_at_first_is_given_less():
    trial, _ = scripted({100: "s", 50: "s", 25: "+"})
    found = search(trial, P99, start_rate=100)
    assert (found.rate, found.failed) == (25, None)
    assert found.why == "at least 25 requests/s: the sender was the limit at 50 requests/s (it was busy)"


def test_a_server_that_fails_below_the_limit_of_the_sender_is_searched_on():
    trial, _ = scripted({200: "s", 100: "-", 50: "+"})
    found = search(trial, P99, start_rate=200, precision=0.05)
    assert (found.rate, found.why) == (50, "")
    assert 50 < found.failed <= 52.5


def test_a_sender_that_is_always_the_limit_is_what_the_search_says():
    found = search(lambda rate: Trial(rate, 1000, 0, 10_000, 1, "it was busy"), P99, start_rate=100)
    assert found.rate == 0
    assert found.why.startswith("the sender was the limit at")


def test_a_trial_that_keeps_the_objective_counts_whatever_the_sender_did():
    found = search(lambda rate: Trial(rate, 10, 0, 10_000, rate, "it was busy"), P99, start_rate=100, most_rate=200)
    assert found.rate == 200


def test_an_overload_that_a_short_trial_hides_is_a_failure():
    """Response times grow, answers fall behind: the limit of 50 ms is not reached only because the trial ends before."""
    assert not Trial(120, 40, 0, 10_000, 100, steady=False).keeps(P99)
    assert Trial(120, 40, 0, 10_000, 100, steady=True).keeps(P99)
    assert Trial(120, 40, 0, 10_000, 119, steady=False).keeps(P99)
    assert Trial(120, 40, 0, 30, 100, steady=False).keeps(P99)  # of 30 requests chance alone leaves out five


def test_errors_break_an_objective_that_latency_keeps():
    found = search(lambda rate: Trial(rate, 10, 0.5 if rate > 100 else 0.0, 10_000, rate), P99, start_rate=20)
    assert found.rate <= 100 < found.failed


def test_nothing_beyond_the_highest_rate_is_tried():
    trial, rates = scripted({100: "+", 200: "+", 250: "+"})
    found = search(trial, P99, start_rate=100, most_rate=250)
    assert max(rates) == 250
    assert (found.rate, found.failed) == (250, None)
    assert found.why == "at least 250 requests/s: more was not asked for"


def test_an_objective_that_no_rate_keeps_is_said_to_be_so():
    found = search(sharp(0), P99, start_rate=1024)
    assert found.rate == 0
    assert found.failed == 1
    assert found.why == "the objective is not kept at any rate down to 1 requests/s"
    assert found.confidence == ""


def test_the_search_ends_with_what_it_has_when_its_trials_are_used_up():
    found = search(sharp(300), P99, start_rate=100, most_trials=7)
    assert len(found.trials) == 7
    assert (found.rate, found.failed) == (200, 400)
    assert found.why == "the search ended after 7 trials; longer ones vary less"
    assert found.confidence.endswith("no fresh ones confirmed it")


def test_trials_that_pass_by_chance_alone_end_in_nothing():
    """One of two trials passes at any rate: majorities happen, four of five fresh ones seldom."""
    turns = itertools.cycle("++---")
    found = search(lambda rate: Trial(rate, 10 if next(turns) == "+" else 99, 0, 10_000, rate), P99, start_rate=100)
    assert len(found.trials) <= 80
    assert found.rate == 0 or "no fresh ones confirmed it" in found.confidence


def test_each_step_is_told_with_its_verdict():
    told = []
    found = search(sharp(150), P99, start_rate=100, on_step=lambda trial, kept: told.append((trial, kept)))
    assert tuple(trial for trial, _ in told) == found.trials
    assert all(kept == (trial.rate <= 150) for trial, kept in told)


def test_confidence_counts_the_fresh_trials_alone():
    """0.05 ** (1/5) = 0.549: with so little chance five of five would come out once in twenty."""
    found = search(sharp(150), P99, start_rate=100)
    assert found.confidence == (
        "5 of 5 fresh trials of at least 10,000 requests kept it: with 95% confidence at least 55% of such trials do"
    )


def test_one_of_five_fresh_trials_may_break_the_objective():
    trial, _ = scripted({100: "++" + "+-+++", 200: "-"})
    found = search(trial, P99, start_rate=100, most_rate=190, precision=0.99)
    assert found.confidence.startswith("4 of 5 fresh trials")
    assert found.confidence.endswith("at least 34% of such trials do")


def test_trials_too_short_for_their_percentile_are_said_to_be_rough():
    found = search(sharp(150, requests=400), P99, start_rate=100)
    assert found.confidence.endswith("; p99 of 400 requests is rough, trials of 1,000 are not")


def test_trials_that_did_not_come_to_rest_are_counted():
    found = search(lambda rate: Trial(rate, 10, 0, 10_000, rate, steady=False), P99, start_rate=10, most_rate=10)
    assert found.confidence.endswith("; 7 of 7 trials did not come to rest")


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_rate": 0}, {"start_rate": -1}, {"start_rate": math.nan}, {"start_rate": 10, "most_rate": 5},
        {"start_rate": 1, "precision": 0}, {"start_rate": 1, "precision": 1}, {"start_rate": 1, "repeats": 0},
        {"start_rate": 1, "most_trials": 0},
    ],
)  # fmt: skip
def test_a_search_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(BadInput, match="a search needs a positive start rate"):
        search(sharp(10), P99, **wrong)


@given(st.integers(1, 40), st.data())
def test_the_lower_bound_is_the_one_of_clopper_and_pearson(trials, data):
    successes = data.draw(st.integers(0, trials))
    expected = stats.beta.ppf(0.05, successes, trials - successes + 1) if successes else 0.0
    assert lower_bound(successes, trials) == pytest.approx(expected, abs=1e-9)
