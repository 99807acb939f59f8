"""Two runs side by side: chance is no regression, and a regression is no chance."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from alexnet_client.errors import BadInput
from alexnet_load.compare import Comparison, Row, compare
from alexnet_load.run import OK, ClientSide, Plan, Records, Run
from alexnet_load.slices import widening
from alexnet_load.summary import percentile_ms, summarize

RATE = 100
FEW = 200
"""Resamples: enough to decide, and a tenth of the time."""


def a_run(draw, *, slower=1.0, seconds=60.0, spread=0.3, swing=0.0, failing=0.0, images=1, late_s=0.0, **plan) -> Run:
    """Latencies about 10 ms; ``swing`` is the spread of a level that changes over 2 s."""
    dice = np.random.default_rng(draw)
    planned_s = np.arange(int(seconds * RATE)) / RATE
    kept = np.exp(-1 / (2 * RATE))
    level = lfilter([1], [1, -kept], dice.standard_normal(len(planned_s)) * swing * np.sqrt(1 - kept**2))
    took_s = slower * 0.01 * np.exp(level + spread * dice.standard_normal(len(planned_s)))
    records = Records(
        planned_s=planned_s,
        sent_s=planned_s + late_s,
        ended_s=planned_s + late_s + took_s,
        late_s=np.full(len(planned_s), late_s),
        images=np.full(len(planned_s), images, np.int32),
        outcome=(dice.random(len(planned_s)) < failing).astype(np.int16),
        outcomes=(OK, "deadline_exceeded"),
    )
    return Run(
        Plan(**{"arrivals": "constant:100", "duration_s": seconds, "warm_up_s": 0.0} | plan), records, ClientSide()
    )


def named(comparison: Comparison) -> dict[str, Row]:
    return {row.name: row for row in comparison.rows}


def test_every_figure_is_compared():
    assert list(named(compare(a_run(0), a_run(1), resamples=FEW))) == [
        "p50 response, ms",
        "p95 response, ms",
        "p99 response, ms",
        "p50 service, ms",
        "p95 service, ms",
        "p99 service, ms",
        "answers a second",
        "images a second",
        "share of errors",
    ]


def test_a_run_is_exactly_itself():
    comparison = compare(a_run(0, failing=0.1), a_run(0, failing=0.1), errors=0.05)
    assert [row.ratio for row in comparison.rows] == [1.0] * 8 + [0.0]
    assert {row.verdict for row in comparison.rows} == {"no difference"}
    assert not comparison.regressed
    assert comparison.differences == ()


def test_two_runs_of_one_distribution_are_hardly_ever_a_regression():
    """At most 2 of 60: any of nine figures, in runs of a minute."""
    alarms = [compare(a_run(2 * seed), a_run(2 * seed + 1), resamples=FEW).regressed for seed in range(60)]
    assert sum(alarms) <= 2


def test_a_run_that_is_slower_by_15_percent_hardly_ever_passes():
    """At least 58 of 60 are a regression of the median, response and service."""
    found = [compare(a_run(2 * seed), a_run(2 * seed + 1, slower=1.15), resamples=FEW) for seed in range(60)]
    assert sum(named(each)["p50 response, ms"].verdict == "regression" for each in found) >= 58
    assert sum(named(each)["p50 service, ms"].verdict == "regression" for each in found) >= 58
    assert sum(each.regressed for each in found) >= 58


def test_latencies_that_hang_together_raise_few_false_alarms():
    """At most 5 % where the level swings by 30 % over 2 s; requests drawn singly raise more than a quarter."""
    pairs = [(a_run(2 * seed, swing=0.3), a_run(2 * seed + 1, swing=0.3)) for seed in range(60)]
    assert sum(compare(a, b, resamples=FEW).regressed for a, b in pairs) <= 3
    assert sum(drawn_singly(a, b) for a, b in pairs) > 15


def drawn_singly(a: Run, b: Run) -> bool:
    """Whether the median of b is a regression if its requests did not hang together; the normal interval of a median."""
    logs = [np.log(each.records.ended_s - each.records.planned_s) for each in (a, b)]
    error = np.hypot(*(1.2533 * each.std() / np.sqrt(len(each)) for each in logs))
    return bool(np.median(logs[1]) - np.median(logs[0]) - 1.96 * error > np.log(1.05))


@pytest.mark.parametrize(("seconds", "swing"), [(10, 0.0), (60, 0.0), (60, 0.1)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(seconds, swing):
    """At least 88 % of 100 for 95 %, in short runs as well and where latencies hang together."""
    pairs = (
        (a_run(2 * seed, swing=swing, seconds=seconds), a_run(2 * seed + 1, slower=1.1, swing=swing, seconds=seconds))
        for seed in range(100)
    )
    rows = [named(compare(a, b, resamples=FEW))["p50 response, ms"] for a, b in pairs]
    assert sum(row.low <= 1.1 <= row.high for row in rows) >= 88


@pytest.mark.parametrize("blocks", [4, 5, 10, 60])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_few_blocks_widen_the_interval_as_students_t_does(blocks, confidence):
    tail = (1 + confidence) / 2
    expected = np.sqrt(blocks / (blocks - 1)) * stats.t.ppf(tail, blocks - 1) / stats.norm.ppf(tail)
    assert widening(blocks, confidence) == pytest.approx(expected, rel=0.12 if blocks == 4 else 0.06)


def test_a_faster_run_is_an_improvement_and_no_regression():
    comparison = compare(a_run(0), a_run(1, slower=0.8), resamples=FEW)
    assert named(comparison)["p50 response, ms"].verdict == "improvement"
    assert named(comparison)["p50 response, ms"].ratio == pytest.approx(0.8, abs=0.03)
    assert not comparison.regressed


def test_a_short_noisy_run_is_undecided_and_not_passed():
    comparison = compare(a_run(0, seconds=8, spread=1.5), a_run(1, seconds=8, spread=1.5), resamples=FEW)
    assert named(comparison)["p99 response, ms"].verdict == "undecided"
    assert not comparison.regressed


@pytest.mark.parametrize(("share", "verdict"), [(0.05, "regression"), (0.15, "undecided"), (0.3, "no difference")])
def test_the_share_is_the_users(share, verdict):
    comparison = compare(a_run(0), a_run(1, slower=1.15), share=share, resamples=FEW)
    assert named(comparison)["p50 response, ms"].verdict == verdict


def test_a_surer_interval_is_wider():
    sure, surer = (named(compare(a_run(0), a_run(1), confidence=each))["p95 response, ms"] for each in (0.8, 0.99))
    assert surer.low < sure.low < sure.ratio < sure.high < surer.high


def test_the_same_seed_gives_the_same_comparison():
    a, b = a_run(0, swing=0.3), a_run(1, swing=0.3)
    assert compare(a, b, seed=3) == compare(a, b, seed=3)
    assert compare(a, b, seed=3) != compare(a, b, seed=4)


def test_the_sides_are_the_figures_of_the_summary():
    run = a_run(0, failing=0.02, images=3, late_s=0.02)
    rows, summary = named(compare(run, run, resamples=FEW)), summarize(run)
    for kind in ("response", "service"):
        for percent in (50, 95, 99):
            expected = percentile_ms(getattr(summary, kind), percent)
            assert rows[f"p{percent} {kind}, ms"].a == pytest.approx(expected, rel=0.003)
    assert rows["answers a second"].a == pytest.approx(summary.ok_rate)
    assert rows["images a second"].a == pytest.approx(summary.image_rate)
    assert rows["share of errors"].a == pytest.approx(sum(summary.errors.values()) / summary.requests)


def test_errors_are_compared_by_their_difference_and_cost_answers():
    comparison = compare(a_run(0, failing=0.01), a_run(1, failing=0.12), resamples=FEW)
    row = named(comparison)["share of errors"]
    assert (row.ratio, row.verdict) == (pytest.approx(0.11, abs=0.02), "regression")
    assert named(comparison)["answers a second"].verdict == "regression"
    assert named(compare(a_run(1, failing=0.12), a_run(0), resamples=FEW))["share of errors"].verdict == "improvement"


def test_more_images_are_an_improvement_and_fewer_a_regression():
    assert named(compare(a_run(0), a_run(1, images=2), resamples=FEW))["images a second"].verdict == "improvement"
    assert named(compare(a_run(0, images=2), a_run(1), resamples=FEW))["images a second"].verdict == "regression"


def test_a_late_sender_shows_in_the_response_and_not_in_the_service_time():
    rows = named(compare(a_run(0), a_run(1, late_s=0.005), resamples=FEW))
    assert rows["p50 response, ms"].verdict == "regression"
    assert rows["p50 service, ms"].verdict in {"no difference", "undecided"}


def test_a_run_in_which_nothing_was_answered_is_a_regression_without_latencies():
    comparison = compare(a_run(0), a_run(1, failing=1.1), resamples=FEW)
    rows = named(comparison)
    assert rows["p99 response, ms"].verdict == "undecided"
    assert np.isnan(rows["p99 response, ms"].b)
    assert rows["answers a second"].verdict == rows["share of errors"].verdict == "regression"
    assert comparison.regressed


def test_the_warm_up_is_not_compared():
    warm = replace(Plan(arrivals="constant:100", duration_s=60.0), warm_up_s=10.0)
    slow = a_run(1)
    ended_s = np.where(slow.records.planned_s < 9.5, slow.records.ended_s + 0.5, slow.records.ended_s)
    slow = replace(slow, plan=warm, records=replace(slow.records, ended_s=ended_s))
    comparison = compare(replace(a_run(0), plan=warm), slow, resamples=FEW)
    assert not comparison.regressed
    assert named(comparison)["p99 response, ms"].ratio == pytest.approx(1, abs=0.1)


def test_runs_of_different_plans_are_compared_and_the_difference_is_named():
    comparison = compare(a_run(0), a_run(1, seconds=30, model="other", sizes=((4, 1.0),)), resamples=FEW)
    assert [each.split(":")[0] for each in comparison.differences] == ["model", "sizes", "duration"]
    assert "alexnet and other" in comparison.differences[0]


def test_seeds_and_targets_may_differ():
    assert compare(a_run(0), a_run(1, seed=5, target="elsewhere:8001"), resamples=FEW).differences == ()


def test_different_machines_are_named():
    here, there = replace(a_run(0), machine="two processors"), replace(a_run(1), machine="sixty-four")
    assert compare(here, there, resamples=FEW).differences == ("machine: two processors and sixty-four",)


@pytest.mark.parametrize("short", ["the first run", "the second run"])
def test_a_run_too_short_to_draw_from_is_named_with_the_remedy(short):
    long, brief = a_run(0), a_run(1, seconds=4)
    with pytest.raises(BadInput, match=f"{short} was measured for 4.0 s .* make a longer one"):
        compare(*((brief, long) if short == "the first run" else (long, brief)))


def test_a_run_without_a_request_is_compared_if_it_was_long_enough():
    comparison = compare(a_run(0), replace(a_run(1), records=a_run(1, seconds=0).records), resamples=FEW)
    assert named(comparison)["answers a second"].verdict == "regression"


@pytest.mark.parametrize(
    "wrong", [{"confidence": 1.0}, {"confidence": 0}, {"share": -0.1}, {"share": 1}, {"resamples": 1}]
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(BadInput, match="between 0 and 1"):
        compare(a_run(0), a_run(1), **wrong)


def test_an_hour_of_requests_is_compared_within_seconds():
    a, b = a_run(0, seconds=3600), a_run(1, seconds=3600)
    began_s = time.process_time()
    assert not compare(a, b).regressed
    assert time.process_time() - began_s < 20
