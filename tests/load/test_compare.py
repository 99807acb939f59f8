"""Comparison of two runs: noise is not a regression, and a regression is detected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from alexnet_client.errors import BadInput
from alexnet_load.compare import CONFIDENCE, Comparison, Row, compare_runs, widening
from alexnet_load.run import Run
from alexnet_load.summary import percentile_ms, summarize

RATE = 50


@pytest.fixture(scope="module")
def run(make_records, make_run):
    def make(
        number, *, slower=1.0, seconds=60.0, spread=0.3, swing=0.0, failing=0.0, images=1, lag_s=0.0, **plan
    ) -> Run:
        """Latencies of about 10 ms; ``swing`` is the spread of a level that changes over 2 s."""
        rng = np.random.default_rng(number)
        planned_s = np.arange(int(seconds * RATE)) / RATE
        kept = np.exp(-1 / (2 * RATE))
        level = lfilter([1], [1, -kept], rng.standard_normal(len(planned_s)) * swing * np.sqrt(1 - kept**2))
        records = make_records(
            planned_s,
            sent_s=planned_s + lag_s,
            took_s=slower * 0.01 * np.exp(level + spread * rng.standard_normal(len(planned_s))),
            images=images,
            outcome=(rng.random(len(planned_s)) < failing).astype(np.int16),
        )
        return make_run(records, duration_s=seconds, **plan)

    return make


def compared(a: Run, b: Run, **options) -> Comparison:
    return compare_runs(a, b, resamples=100, **options)  # enough for a decision


def rows(comparison: Comparison) -> dict[str, Row]:
    return {row.name: row for row in comparison.rows}


def test_a_run_is_equal_to_itself_and_has_the_values_of_its_summary(run):
    a = run(0, failing=0.1, images=3, lag_s=0.02)
    comparison, summary = compared(a, a, max_errors=0.05), summarize(a)
    found = rows(comparison)
    rates = {"answers/s": summary.ok_rate, "images/s": summary.image_rate, "share of errors": summary.error_share}
    latencies = {
        f"p{percent} {kind}, ms": percentile_ms(getattr(summary, kind), percent)
        for kind in ("response", "service")
        for percent in (50, 95, 99)
    }
    assert {name: row.a for name, row in found.items()} == pytest.approx(latencies | rates, rel=0.01)
    assert [row.ratio for row in found.values()] == [1.0] * 8 + [0.0]
    assert {row.result for row in found.values()} <= {"no difference", "undecided"}
    assert (comparison.regressed, comparison.differences) == (False, ())


def test_a_regression_of_15_percent_is_almost_always_detected_and_almost_nothing_else(run):
    """Of 16 pairs of one minute, at most 1 false alarm in any of nine metrics, and at least 15 detections in the median."""
    references = [run(2 * seed) for seed in range(16)]
    assert sum(compared(a, run(2 * seed + 1)).regressed for seed, a in enumerate(references)) <= 1
    found = [rows(compared(a, run(2 * seed + 1, slower=1.15))) for seed, a in enumerate(references)]
    for name in ("p50 response, ms", "p50 service, ms"):
        assert sum(each[name].result == "regression" for each in found) >= 15


def test_correlated_latencies_cause_few_false_alarms(run):
    """At most 5 % if the level changes by 30 % over 2 s; a test that ignored the correlation would have more than a quarter."""
    pairs = ((run(2 * seed, swing=0.3), run(2 * seed + 1, swing=0.3)) for seed in range(24))
    assert sum(compared(a, b).regressed for a, b in pairs) <= 1


@pytest.mark.parametrize(("seconds", "swing"), [(10, 0.0), (60, 0.1)])
def test_the_interval_contains_the_true_ratio_about_as_often_as_stated(run, seconds, swing):
    """At least 21 of 24 for 95 %, in short runs and with correlated latencies."""
    options = {"swing": swing, "seconds": seconds}
    pairs = ((run(2 * seed, **options), run(2 * seed + 1, slower=1.1, **options)) for seed in range(24))
    found = [rows(compared(a, b))["p50 response, ms"] for a, b in pairs]
    assert sum(row.low <= 1.1 <= row.high for row in found) >= 21


@pytest.mark.parametrize("blocks", [4, 5, 10, 60])
def test_few_blocks_widen_the_interval_like_students_t_distribution(blocks):
    tail = (1 + CONFIDENCE) / 2
    expected = np.sqrt(blocks / (blocks - 1)) * stats.t.ppf(tail, blocks - 1) / stats.norm.ppf(tail)
    assert widening(blocks) == pytest.approx(expected, rel=0.12 if blocks == 4 else 0.06)


@pytest.mark.parametrize(
    ("before", "after", "name", "result"),
    [
        ({}, {"slower": 1.15}, "p50 response, ms", "regression"),
        ({}, {"slower": 0.8}, "p50 response, ms", "improvement"),
        ({}, {"images": 2}, "images/s", "improvement"),
        ({"images": 2}, {}, "images/s", "regression"),
        ({}, {"lag_s": 0.005}, "p50 response, ms", "regression"),
        ({}, {"failing": 0.12}, "share of errors", "regression"),
        ({}, {"failing": 0.12}, "answers/s", "regression"),
        ({"failing": 0.12}, {}, "share of errors", "improvement"),
        ({"seconds": 8, "spread": 1.5}, {"seconds": 8, "spread": 1.5}, "p99 response, ms", "undecided"),
    ],
)
def test_each_metric_has_a_direction(run, before, after, name, result):
    comparison = compared(run(0, **before), run(1, **after))
    assert rows(comparison)[name].result == result
    assert comparison.regressed == (result == "regression")
    if "lag_s" in after:
        assert rows(comparison)["p50 service, ms"].result in {"no difference", "undecided"}


def test_the_limit_is_an_option_and_equal_seeds_give_equal_comparisons(run):
    a, b = run(0), run(1, slower=1.15)
    for max_change, result in ((0.15, "undecided"), (0.3, "no difference")):
        assert rows(compared(a, b, max_change=max_change))["p50 response, ms"].result == result
    assert compared(a, b, seed=3) == compared(a, b, seed=3)
    assert compared(a, b, seed=3) != compared(a, b, seed=4)


def test_a_run_without_answers_or_requests_is_a_regression(run):
    found = rows(compared(run(0), run(1, failing=1.1)))
    assert found["p99 response, ms"].result == "undecided"
    assert np.isnan(found["p99 response, ms"].b)
    assert found["answers/s"].result == found["share of errors"].result == "regression"
    empty = replace(run(1), records=run(1, seconds=0).records)
    assert rows(compared(run(0), empty))["answers/s"].result == "regression"


def test_the_warm_up_is_not_compared(run):
    slow = run(1, warm_up_s=10.0)
    ended_s = np.where(slow.records.planned_s < 9.5, slow.records.ended_s + 0.5, slow.records.ended_s)
    slow = replace(slow, records=replace(slow.records, ended_s=ended_s))
    comparison = compared(run(0, warm_up_s=10.0), slow)
    assert not comparison.regressed
    assert rows(comparison)["p99 response, ms"].ratio == pytest.approx(1, abs=0.15)


def test_differences_of_plans_and_machines_are_listed(run):
    other = replace(run(1, seconds=30, model="other", sizes=((4, 1.0),), seed=5, target="b:8001"), machine="64 CPUs")
    differences = compared(run(0), other).differences
    assert [each.split(":")[0] for each in differences] == ["model", "sizes", "duration", "machine"]
    assert differences[0] == "model: alexnet and other"
    assert differences[3] == "machine: 2 CPUs and 64 CPUs"


@pytest.mark.parametrize(
    ("seconds", "limit", "message"),
    [
        ((60, 4), {}, r"the second run is too short: 4\.0 s after the warm-up, at least 5 s"),
        ((4, 60), {}, "the first run is too short"),
        *(((60, 60), each, "at least 0 and below 1") for each in ({"max_change": -0.1}, {"max_change": 1})),
        ((60, 60), {"max_errors": -1}, "at least 0 and below 1"),
    ],
)
def test_short_runs_and_invalid_limits_are_rejected(run, seconds, limit, message):
    with pytest.raises(BadInput, match=message):
        compared(*(run(0, seconds=each) for each in seconds), **limit)
