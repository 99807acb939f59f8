"""Results of a run: rates, percentiles, windows, warnings."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_load.run import OK, ClientStatistics, ServerStatistics
from alexnet_load.summary import as_json, histogram, percentile_ms, percentiles, sending_ended_s, summarize, warnings

DONE = ClientStatistics(wall_s=20.0)
EVERY_10_MS = 0.01 * np.arange(2000)
EVERY_100_MS = 0.1 * np.arange(200)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 1.0, 2.0]), st.floats(-9, 0))
def test_percentiles_are_within_0_2_percent_of_the_exact_ones(seed, spread, middle):
    took_s = np.random.default_rng(seed).lognormal(middle, spread, 10_000).clip(1e-3, 3000)
    found = percentiles(histogram(took_s))
    for name in ("p50", "p90", "p95", "p99", "p99.9", "max"):
        percent = 100 if name == "max" else float(name[1:])
        low, high = (1000 * np.percentile(took_s, percent, method=side) for side in ("lower", "higher"))
        assert low * 0.998 <= found[name] <= high * 1.002


def test_a_stall_is_part_of_the_response_time_and_not_of_the_service_time(make_records, make_run):
    sent_s = np.where((EVERY_10_MS >= 10) & (EVERY_10_MS < 12), 12.0, EVERY_10_MS)  # the server stalls from 10 to 12 s
    summary = summarize(make_run(make_records(EVERY_10_MS, sent_s=sent_s, took_s=0.005)))
    assert percentile_ms(summary.response, 99) == pytest.approx(1800, rel=0.02)  # the last tenth of 2 s of 20 s
    assert percentile_ms(summary.service, 99) == pytest.approx(5, rel=0.02)
    assert percentile_ms(summary.response, 50) == pytest.approx(5, rel=0.02)


def test_only_the_windows_include_the_warm_up(make_records, make_run):
    took_s = np.where(EVERY_10_MS < 1.995, 1.0, 0.01)
    summary = summarize(make_run(make_records(EVERY_10_MS, took_s=took_s), warm_up_s=2.0))
    assert summary.seconds == 18
    assert summary.requests == summary.ok == summary.images == 1800
    assert summary.response.get_max_value() / 1000 == pytest.approx(10, rel=0.001)
    assert summary.windows[0].start_s == 0
    assert summary.windows[0].p50_ms == pytest.approx(1000)


def test_errors_are_counted_by_outcome_and_excluded_from_latencies(make_records, make_run):
    outcome = np.tile([0, 1, 0, 2], 500)
    outcomes = (OK, "deadline_exceeded", "overloaded", "closed")
    took_s = np.where(outcome == 0, 0.01, 9.0)
    summary = summarize(make_run(make_records(EVERY_10_MS, took_s=took_s, outcome=outcome, outcomes=outcomes)))
    assert summary.errors == {"deadline_exceeded": 500, "overloaded": 500}
    assert (summary.requests, summary.ok, summary.error_share) == (2000, 1000, 0.5)
    assert summary.response.get_max_value() / 1000 == pytest.approx(10, rel=0.001)
    assert sum(each.failed for each in summary.windows) == 1000


def test_rates_count_what_happened_within_the_measured_period(make_records, make_run):
    summary = summarize(make_run(make_records(EVERY_100_MS, took_s=5.0, images=4), warm_up_s=10.0))
    assert summary.planned_rate == summary.sent_rate == pytest.approx(10)
    assert summary.ok_rate == pytest.approx(10)  # the requests planned from 5 s to 15 s
    assert summary.image_rate == pytest.approx(40)
    for delay_s, rate in ((5, 10), (50, 0)):
        late = summarize(make_run(make_records(EVERY_100_MS, sent_s=EVERY_100_MS + delay_s), warm_up_s=10.0))
        assert (late.planned_rate, late.sent_rate) == pytest.approx((10, rate))


@pytest.mark.parametrize(
    ("plan", "client", "end_s"),
    [
        ({"duration_s": 60.0}, replace(DONE, interrupted=True), 19.9),
        ({"duration_s": 60.0}, None, 19.9),
        ({"duration_s": 60.0, "arrivals": "trace:a.csv"}, DONE, 19.9),
        ({"duration_s": 40.0}, DONE, 40.0),
    ],
    ids=["interrupted", "killed", "trace", "complete"],
)
def test_an_incomplete_run_is_measured_until_its_last_request(make_records, make_run, plan, client, end_s):
    run = make_run(make_records(EVERY_100_MS), client=client, **plan)
    assert sending_ended_s(run) == pytest.approx(end_s)
    assert summarize(run).planned_rate == pytest.approx(200 / end_s, rel=0.01)


@pytest.mark.parametrize("arrivals", ["constant:100", "closed:4"])
@pytest.mark.parametrize("client", [None, DONE], ids=["killed", "complete"])
@pytest.mark.parametrize(
    ("planned_s", "warm_up_s", "requests"),
    [([], 0, 0), ([0.0], 0, 1), ([0.5], 0, 1), ([], 30, 0), ([0.5], 30, 0)],
    ids=["none", "one", "one later", "none, warm-up only", "one in the warm-up"],
)
def test_a_run_with_at_most_one_request_has_a_summary(
    make_records, make_run, arrivals, client, planned_s, warm_up_s, requests
):
    run = make_run(make_records(planned_s), client=client, arrivals=arrivals, warm_up_s=warm_up_s)
    summary = summarize(run)
    assert summary.requests == requests
    assert (summary.steady_from_s, bool(summary.unsteady)) == (None, True)
    assert list(percentiles(summary.response)) == ["p50", "max"] * requests
    assert np.isinf(percentile_ms(summary.response, 99)) == (not requests)
    json.dumps(as_json(summary, run), allow_nan=False)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.01, 4000), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_windows_cover_the_run_and_every_request(make_records, make_run, duration_s, count, seed):
    rng = np.random.default_rng(seed)
    planned_s, outcome = np.sort(rng.uniform(0, duration_s, count)), rng.integers(0, 2, count)
    run = make_run(make_records(planned_s, took_s=0, outcome=outcome), duration_s=duration_s)
    windows = summarize(run).windows
    assert 1 <= len(windows) <= 60
    assert all(each.seconds >= 0.25 for each in windows)
    assert windows[-1].start_s + windows[-1].seconds == pytest.approx(max(0.25, duration_s))
    assert sum(each.sent for each in windows) == count
    assert sum(each.failed for each in windows) == outcome.sum()
    assert sum(each.ok for each in windows) == sum(each.images for each in windows) == count - outcome.sum()


def test_latency_belongs_to_the_window_of_the_planned_time_and_throughput_to_that_of_the_answer(make_records, make_run):
    took_s = np.where((EVERY_100_MS >= 5) & (EVERY_100_MS < 6), 3.0, 0.01)
    summary = summarize(make_run(make_records(EVERY_100_MS, took_s=took_s), duration_s=60.0))
    windows = {each.start_s: each for each in summary.windows}
    assert windows[5.0].p50_ms == pytest.approx(3000)
    assert (windows[5.0].ok, windows[8.0].ok) == (0, 20)
    assert windows[8.0].p50_ms == pytest.approx(10)
    assert windows[40.0].p50_ms is None


def test_a_percentile_with_fewer_than_ten_requests_above_it_is_omitted():
    needed = {"p50": 0, "p90": 100, "p95": 200, "p99": 1000, "p99.9": 10_000, "p99.99": 100_000, "max": 0}
    for count in (5, 99, 100, 199, 200, 999, 1000, 9_999, 10_000, 100_000):
        found = percentiles(histogram(np.full(count, 0.02)))
        assert list(found) == [name for name, minimum in needed.items() if count >= minimum]


LATE = "p99 of the load generator lag is 30.0 ms, p99 of the response time 40.0 ms; use more senders (--senders 3)"


@pytest.mark.parametrize(
    ("lag_s", "took_s", "cpu_s", "arrivals", "reason"),
    [
        (0.004, 0.001, (), "constant:100", ""),
        (0.009, 0.1, (), "constant:100", ""),
        (np.where(np.arange(2000) % 50 == 0, 0.03, 0), 0.01, (), "constant:100", LATE),
        (np.where(np.arange(2000) % 200 == 0, 0.03, 0), 0.01, (), "constant:100", ""),
        (1.0, 0.01, (), "closed:4", ""),
        *(
            (0, 0.01, (3.0, 19.4), each, "the CPU utilisation of a sender was 97%")
            for each in ("constant:100", "closed:4")
        ),
        (0, 0.01, (9.0, 18.9), "constant:100", ""),
    ],
    ids=[
        "below 5 ms",
        "below 10 %",
        "2 % late",
        "0.5 % late",
        "closed loop",
        "whole CPU",
        "closed, whole CPU",
        "busy CPU",
    ],
)
def test_lag_or_a_sender_that_uses_its_whole_cpu_shows_that_the_load_generator_is_the_bottleneck(
    make_records, make_run, lag_s, took_s, cpu_s, arrivals, reason
):
    records = make_records(EVERY_10_MS, sent_s=EVERY_10_MS + lag_s, took_s=took_s)
    run = make_run(records, client=replace(DONE, cpu_s=cpu_s), arrivals=arrivals, senders=2)
    found = summarize(run).generator_limited
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("records", "client", "expected"),
    [
        (
            {"took_s": 0.02 + 0.6 * EVERY_10_MS},
            DONE,
            ["Overload: 100.0 requests/s were sent, 62.5 were answered", "No steady state: the response time grows"],
        ),
        ({"outcome": 1}, DONE, ["No steady state"]),
        ({}, DONE, []),
        ({}, replace(DONE, cpu_s=(19.9,)), ["The load generator was the bottleneck"]),
        ({}, replace(DONE, interrupted=True), ["The run was interrupted"]),
        ({}, None, ["The run file is incomplete"]),
    ],
    ids=["overload", "all rejected", "good", "load generator", "interrupted", "killed"],
)
def test_each_reason_for_misleading_results_is_a_warning(make_records, make_run, records, client, expected):
    run = make_run(make_records(EVERY_10_MS, **records), client=client)
    found = warnings(run, summarize(run))
    assert [text[: len(start)] for text, start in zip(found, expected, strict=True)] == expected


def test_the_json_object_contains_all_results(make_records, make_run):
    client, server = replace(DONE, attempts={OK: 2000}), ServerStatistics(success=2000)
    run = make_run(make_records(EVERY_10_MS, images=2), client=client, server=server)
    found = json.loads(json.dumps(as_json(summarize(run), run), allow_nan=False))
    assert found == found | {"requests": 2000, "ok": 2000, "images": 4000, "errors": {}, "planned_rate": 100}
    assert found == found | {"unsteady": "", "generator_limited": "", "server_missing": "", "version": "1.2.3"}
    assert found["image_rate"] == pytest.approx(200, rel=0.01)
    assert found["response_ms"] == found["service_ms"]
    assert found["response_ms"]["p99"] == pytest.approx(10, rel=0.001)
    assert found["lag_ms"]["p50"] == 0.001
    nested = found["plan"]["arrivals"], found["client"]["attempts"], found["server"]["success"]
    assert nested == ("constant:100", {OK: 2000}, 2000)
