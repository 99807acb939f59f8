"""A run in figures: exact where they can be, honest where they cannot."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_load.run import OK, ClientSide, Plan, Records, Run, ServerSide
from alexnet_load.summary import as_json, histogram, percentile_ms, percentiles, sending_ended_s, summarize

DONE = ClientSide(wall_s=20.0)


def recorded(planned_s, *, sent_s=None, took_s=0.01, images=1, outcome=0, outcomes=(OK,)) -> Records:
    planned_s = np.asarray(planned_s, np.float64)
    sent_s = planned_s if sent_s is None else np.asarray(sent_s, np.float64)
    count = len(planned_s)
    return Records(
        planned_s,
        sent_s,
        sent_s + took_s,
        sent_s - planned_s,
        np.broadcast_to(np.int32(images), count).astype(np.int32),
        np.broadcast_to(np.int16(outcome), count).astype(np.int16),
        outcomes,
    )


def a_run(records: Records, *, client: ClientSide | None = DONE, **plan) -> Run:
    return Run(Plan(**{"arrivals": "constant:100", "duration_s": 20.0, "warm_up_s": 0.0} | plan), records, client)


def every(gap_s: float, *, until_s: float = 20.0, since_s: float = 0.0):
    return since_s + gap_s * np.arange(round((until_s - since_s) / gap_s))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 1.0, 2.0]), st.floats(-9, 0))
def test_reported_percentiles_are_within_two_thousandths_of_the_exact_ones(seed, spread, middle):
    took_s = np.random.default_rng(seed).lognormal(middle, spread, 10_000).clip(1e-3, 3000)
    found = percentiles(histogram(took_s))
    for name in ("p50", "p90", "p95", "p99", "p99.9", "max"):
        percent = 100 if name == "max" else float(name[1:])
        low, high = (1000 * np.percentile(took_s, percent, method=side) for side in ("lower", "higher"))
        assert low * 0.998 <= found[name] <= high * 1.002


def test_a_stall_shows_in_the_response_time_and_hides_in_the_service_time_of_a_sender_that_waits():
    planned_s = every(0.01)
    sent_s = np.where((planned_s >= 10) & (planned_s < 12), 12.0, planned_s)  # the server stands still from 10 to 12 s
    summary = summarize(a_run(recorded(planned_s, sent_s=sent_s, took_s=0.005)))
    assert percentile_ms(summary.response, 99) == pytest.approx(1800, rel=0.02)  # the last tenth of 2 s of 20 s
    assert percentile_ms(summary.service, 99) == pytest.approx(5, rel=0.02)
    assert percentile_ms(summary.response, 50) == pytest.approx(5, rel=0.02)


def test_the_warm_up_is_in_no_figure_but_the_windows():
    slow, usual = recorded(every(0.01, until_s=2), took_s=1.0), recorded(every(0.01, since_s=2), took_s=0.01)
    records = Records(*(np.concatenate([getattr(each, name) for each in (slow, usual)]) for name in FIELDS))
    summary = summarize(a_run(records, warm_up_s=2.0))
    assert summary.seconds == 18
    assert summary.requests == summary.ok == summary.images == 1800
    assert summary.response.get_max_value() / 1000 == pytest.approx(10, rel=0.001)
    assert summary.windows[0].start_s == 0
    assert summary.windows[0].p50_ms == pytest.approx(1000)


FIELDS = ("planned_s", "sent_s", "ended_s", "late_s", "images", "outcome")


def test_errors_are_counted_by_kind_and_are_in_no_latency():
    outcome = np.tile([0, 1, 0, 2], 500)
    took_s = np.where(outcome == 0, 0.01, 9.0)
    records = recorded(
        every(0.01), took_s=took_s, outcome=outcome, outcomes=(OK, "deadline_exceeded", "overloaded", "closed")
    )
    summary = summarize(a_run(records))
    assert summary.errors == {"deadline_exceeded": 500, "overloaded": 500}
    assert (summary.requests, summary.ok) == (2000, 1000)
    assert summary.response.get_max_value() / 1000 == pytest.approx(10, rel=0.001)
    assert sum(each.failed for each in summary.windows) == 1000


def test_rates_count_what_happened_within_the_measured_part():
    planned_s = every(0.1)
    summary = summarize(a_run(recorded(planned_s, took_s=5.0, images=4), warm_up_s=10.0))
    assert summary.planned_rate == summary.sent_rate == pytest.approx(10)
    assert summary.ok_rate == pytest.approx(10)  # those that were planned from 5 s to 15 s
    assert summary.image_rate == pytest.approx(40)
    late = summarize(a_run(recorded(planned_s, sent_s=planned_s + 5), warm_up_s=10.0))
    assert late.sent_rate == pytest.approx(10)
    stuck = summarize(a_run(recorded(planned_s, sent_s=planned_s + 50), warm_up_s=10.0))
    assert (stuck.planned_rate, stuck.sent_rate, stuck.ok_rate) == (pytest.approx(10), 0, 0)


@pytest.mark.parametrize(
    ("plan", "client"),
    [
        ({"duration_s": 60.0}, replace(DONE, interrupted=True)),
        ({"duration_s": 60.0}, None),
        ({"duration_s": 60.0, "max_count": 200}, DONE),
        ({"duration_s": 60.0, "arrivals": "trace:a.csv"}, DONE),
    ],
    ids=["interrupted", "killed", "counted", "replayed"],
)
def test_a_run_that_ends_early_is_measured_to_its_last_request(plan, client):
    run = a_run(recorded(every(0.1)), client=client, **plan)
    assert sending_ended_s(run) == pytest.approx(19.9)
    assert summarize(run).planned_rate == pytest.approx(10)


def test_a_run_whose_arrivals_end_early_is_measured_to_its_end():
    run = a_run(recorded(every(0.1)), duration_s=40.0)
    assert sending_ended_s(run) == 40
    assert summarize(run).planned_rate == pytest.approx(5)


@pytest.mark.parametrize("arrivals", ["constant:100", "closed:4"])
@pytest.mark.parametrize("client", [None, DONE])
@pytest.mark.parametrize("planned_s", [[], [0.0], [0.5]], ids=["none", "one", "one later"])
@pytest.mark.parametrize("warm_up_s", [0.0, 30.0], ids=["no warm-up", "warm-up only"])
def test_a_run_of_next_to_nothing_has_a_summary(arrivals, client, planned_s, warm_up_s):
    run = a_run(recorded(planned_s), client=client, arrivals=arrivals, warm_up_s=warm_up_s)
    summary = summarize(run)
    assert summary.requests == (len(planned_s) if warm_up_s == 0 else 0)
    assert all(np.isfinite(each) for each in (summary.planned_rate, summary.sent_rate, summary.ok_rate))
    assert summary.steady_from_s is None
    assert summary.unsteady
    json.loads(json.dumps(as_json(summary, run), allow_nan=False))


def test_a_run_in_which_everything_failed_has_no_percentiles_and_is_not_steady():
    run = a_run(recorded(every(0.1), outcome=1, outcomes=(OK, "unavailable")))
    summary = summarize(run)
    assert percentiles(summary.response) == {}
    assert percentile_ms(summary.response, 99) == float("inf")
    assert summary.unsteady
    json.loads(json.dumps(as_json(summary, run), allow_nan=False))


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 4000), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_windows_fill_the_time_and_lose_no_request(duration_s, count, seed):
    dice = np.random.default_rng(seed)
    planned_s = np.sort(dice.uniform(0, duration_s, count))
    outcome = dice.integers(0, 2, count)
    run = a_run(recorded(planned_s, took_s=0, outcome=outcome, outcomes=(OK, "closed")), duration_s=duration_s)
    windows = summarize(run).windows
    assert 1 <= len(windows) <= 60
    assert all(each.seconds >= 0.25 for each in windows)
    assert windows[-1].start_s + windows[-1].seconds == pytest.approx(max(0.25, duration_s))
    assert sum(each.sent for each in windows) == count
    assert sum(each.failed for each in windows) == outcome.sum()
    assert sum(each.ok for each in windows) == sum(each.images for each in windows) == count - outcome.sum()


def test_windows_take_latency_by_the_planned_time_and_throughput_by_the_answer():
    planned_s = every(0.1)
    took_s = np.where((planned_s >= 5) & (planned_s < 6), 3.0, 0.01)
    windows = {
        each.start_s: each for each in summarize(a_run(recorded(planned_s, took_s=took_s), duration_s=60.0)).windows
    }
    assert windows[5.0].p50_ms == pytest.approx(3000)
    assert (windows[5.0].ok, windows[8.0].ok) == (0, 20)
    assert windows[8.0].p50_ms == pytest.approx(10)
    assert windows[40.0].p50_ms is None


def test_a_calm_run_is_steady_and_a_growing_queue_is_not():
    planned_s = every(0.01)
    noise_s = np.random.default_rng(0).exponential(0.01, len(planned_s))
    assert summarize(a_run(recorded(planned_s, took_s=noise_s))).unsteady == ""
    grown = summarize(a_run(recorded(planned_s, took_s=noise_s + 0.3 * planned_s)))
    assert grown.steady_from_s is None
    assert "faster than they are answered" in grown.unsteady


@pytest.mark.parametrize("count", [5, 99, 100, 199, 200, 999, 1000, 9_999, 10_000, 100_000])
def test_a_percentile_with_fewer_than_ten_requests_beyond_it_is_left_out(count):
    found = percentiles(histogram(np.full(count, 0.02)))
    needed = {"p50": 0, "p90": 100, "p95": 200, "p99": 1000, "p99.9": 10_000, "p99.99": 100_000, "max": 0}
    assert list(found) == [name for name, least in needed.items() if count >= least]


@pytest.mark.parametrize("late_s", [0.004, 0.009])
def test_a_sender_that_is_a_little_late_is_not_the_limit(late_s):
    planned_s = every(0.01)
    run = a_run(recorded(planned_s, sent_s=planned_s + late_s, took_s=0.1 if late_s > 0.005 else 0.001))
    assert summarize(run).sender_limited == ""


def test_a_late_sender_says_how_late_and_what_to_do():
    planned_s = every(0.01)
    late_s = np.where(np.arange(len(planned_s)) % 50 == 0, 0.03, 0)  # 2 % of them
    said = summarize(a_run(recorded(planned_s, sent_s=planned_s + late_s), senders=2)).sender_limited
    assert "more than 30.0 ms late, in a p99 of 40.0 ms" in said
    assert "--senders 3" in said


def test_half_a_percent_of_late_requests_is_not_the_senders_limit():
    planned_s = every(0.01)
    late_s = np.where(np.arange(len(planned_s)) % 200 == 0, 0.03, 0)
    assert summarize(a_run(recorded(planned_s, sent_s=planned_s + late_s))).sender_limited == ""


@pytest.mark.parametrize("arrivals", ["constant:100", "closed:4"])
def test_one_sender_whose_process_has_no_time_left_is_the_limit(arrivals):
    client = ClientSide(wall_s=20.0, cpu_s=(3.0, 19.4))
    said = summarize(a_run(recorded(every(0.01)), client=client, arrivals=arrivals)).sender_limited
    assert "97% of the time" in said
    assert summarize(a_run(recorded(every(0.01)), client=replace(client, cpu_s=(9.0, 18.9)))).sender_limited == ""


def test_callers_of_a_closed_loop_are_never_late():
    planned_s = every(0.01)
    run = a_run(recorded(planned_s, sent_s=planned_s + 1), arrivals="closed:4")
    assert summarize(run).sender_limited == ""


def test_the_record_for_machines_holds_every_figure():
    run = replace(
        a_run(recorded(every(0.01), images=2), client=ClientSide(wall_s=20.0, attempts={OK: 2000})),
        server=ServerSide(success=2000),
        machine="two processors",
        started="2026-01-02T03:04:05+00:00",
        version="1.2.3",
    )
    found = json.loads(json.dumps(as_json(summarize(run), run), allow_nan=False))
    assert found["plan"]["arrivals"] == "constant:100"
    assert (found["requests"], found["ok"], found["images"], found["errors"]) == (2000, 2000, 4000, {})
    assert (found["planned_rate"], found["image_rate"]) == (100, pytest.approx(200, rel=0.01))
    assert found["response_ms"] == found["service_ms"]
    assert found["response_ms"]["p99"] == pytest.approx(10, rel=0.001)
    assert found["lag_ms"]["p50"] == 0.001
    assert (found["unsteady"], found["sender_limited"], found["server_missing"]) == ("", "", "")
    assert found["client"]["attempts"] == {OK: 2000}
    assert found["server"]["success"] == 2000
    assert (found["machine"], found["version"]) == ("two processors", "1.2.3")
