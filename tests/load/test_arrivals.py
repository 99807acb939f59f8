"""Arrival processes and request sizes: their syntax, and the distributions of the schedules."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alexnet_client.errors import BadInput
from alexnet_load.arrivals import (
    Burst,
    ClosedLoop,
    Constant,
    Poisson,
    Ramp,
    Steps,
    Trace,
    draw_sizes,
    mean_rate,
    parse_arrivals,
    parse_sizes,
    schedule,
    share_of,
    with_rate,
)
from alexnet_load.run import Plan
from alexnet_load.run_file import Record, RunWriter

RATES = st.floats(1e-6, 1e9)
ENDS = st.tuples(RATES | st.just(0.0), RATES)
CHANGEABLE = st.one_of(
    RATES.map(Constant),
    RATES.map(Poisson),
    ENDS.map(lambda ends: Ramp(*ends)),
    ENDS.map(Steps),
    st.builds(Burst, st.integers(1, 10**6), RATES),
)


def times(text: str, duration_s: float = 10.0, seed: int = 0):
    return schedule(parse_arrivals(text), duration_s=duration_s, seed=seed).times_s


@given(CHANGEABLE | st.builds(ClosedLoop, st.integers(1, 10**6)))
def test_parsing_the_text_of_arrivals_gives_equal_arrivals(arrivals):
    assert parse_arrivals(str(arrivals)) == arrivals


@given(CHANGEABLE, st.floats(1e-3, 1e6))
def test_with_rate_keeps_the_kind_of_process_and_sets_its_mean_rate(arrivals, rate):
    changed = with_rate(arrivals, rate)
    assert type(changed) is type(arrivals)
    assert mean_rate(changed) == pytest.approx(rate, rel=1e-9)


def test_with_rate_scales_both_ends_of_a_ramp():
    assert with_rate(Ramp(10, 30), 40) == Ramp(20, 60)


@pytest.mark.parametrize(
    ("text", "arrivals"),
    [
        ("ramp:1e-05-2e+03", Ramp(1e-5, 2e3)),
        ("steps:10,0,20", Steps((10, 0, 20))),
        ("burst:8/0.5", Burst(8, 0.5)),
        ("trace:my:file.csv", Trace(Path("my:file.csv"))),
        ("closed:16", ClosedLoop(16)),
    ],
)
def test_each_kind_of_arrivals_is_parsed(text, arrivals):
    assert parse_arrivals(text) == arrivals


@pytest.mark.parametrize(
    "text",
    [
        "", "poisson", "poisson:", "uniform:5", "constant:0", "constant:-1", "poisson:nan", "poisson:inf", "poisson:many",
        "ramp:5", "ramp:0-0", "ramp:5--3", "ramp:-5-3", "steps:", "steps:0,0", "steps:1,,2", "burst:8", "burst:0/1", "burst:2.5/1",
        "burst:8/0", "trace:", "closed:0", "closed:-1", "closed:1.5",
    ],
)  # fmt: skip
def test_invalid_arrivals_are_rejected_with_the_syntax(text):
    with pytest.raises(BadInput, match="use constant:RATE, poisson:RATE, ramp:FROM-TO"):
        parse_arrivals(text)


def test_constant_arrivals_do_not_drift_in_a_million_requests():
    found = times("constant:997", duration_s=1003.0)
    assert len(found) == 997 * 1003
    np.testing.assert_array_equal(found, np.arange(997 * 1003) / 997)


def test_poisson_gaps_are_exponential():
    """Kolmogorov-Smirnov test with 200 seeds: more than 8 p-values below 0.01 have a probability of 1e-4 (binomial)."""
    failures = sum(
        stats.kstest(np.diff(times("poisson:200", seed=seed)), "expon", args=(0, 1 / 200)).pvalue < 0.01
        for seed in range(200)
    )
    assert failures <= 8


def test_poisson_counts_have_a_variance_equal_to_their_mean():
    """The index of dispersion of 100 counts is chi-square distributed with 99 degrees of freedom; 200 seeds, two-sided 1 %."""
    failures = 0
    for seed in range(200):
        counts, _ = np.histogram(times("poisson:200", seed=seed), bins=100, range=(0, 10))
        tail = stats.chi2.cdf(counts.var(ddof=1) / counts.mean() * 99, 99)
        failures += min(tail, 1 - tail) < 0.005
    assert failures <= 8


def test_constant_arrivals_fail_the_dispersion_test():
    counts, _ = np.histogram(times("constant:200"), bins=100, range=(0, 10))
    assert stats.chi2.cdf(counts.var(ddof=1) / counts.mean() * 99, 99) < 0.005


@pytest.mark.parametrize("text", ["ramp:0-400", "ramp:400-0", "ramp:100-300", "ramp:200-200.0000001"])
def test_a_ramp_is_a_poisson_process_in_expected_counts(text):
    """Given their number, expected counts are uniform; 50 seeds at 1 %: more than 5 have a probability of 1e-5."""
    ramp = parse_arrivals(text)
    slope = (ramp.last - ramp.first) / 10
    failures = 0
    for seed in range(50):
        found = times(text, seed=seed)
        failures += stats.kstest((ramp.first * found + slope * found**2 / 2) / 2000, "uniform").pvalue < 0.01
        assert abs(len(found) - 2000) < 5 * 2000**0.5
    assert failures <= 5


def test_each_step_has_its_rate_for_an_equal_part_of_the_run():
    counts, _ = np.histogram(times("steps:100,0,400", duration_s=30.0), bins=3, range=(0, 30))
    assert counts[1] == 0
    assert abs(counts[0] - 1000) < 160  # five standard deviations
    assert abs(counts[2] - 4000) < 320


def test_all_requests_of_a_burst_have_the_same_time():
    np.testing.assert_array_equal(times("burst:3/4"), [0, 0, 0, 4, 4, 4, 8, 8, 8])


@pytest.mark.parametrize(
    "text", ["constant:0.1", "constant:7.3", "poisson:50", "ramp:0-80", "steps:9,80", "burst:2/0.3"]
)
@pytest.mark.parametrize("duration_s", [0.01, 0.3, 30.0])
def test_a_schedule_is_sorted_and_lies_within_the_run(text, duration_s):
    for seed in range(10):
        found = times(text, duration_s=duration_s, seed=seed)
        assert found.dtype == np.float64
        assert np.all(np.diff(found) >= 0)
        assert np.all((found >= 0) & (found < duration_s))


def test_equal_seeds_give_equal_schedules_and_different_seeds_different_ones():
    np.testing.assert_array_equal(times("poisson:50", seed=3), times("poisson:50", seed=3))
    assert not np.array_equal(times("poisson:50", seed=3)[:100], times("poisson:50", seed=4)[:100])


@pytest.mark.parametrize("duration_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_duration_that_is_not_positive_and_finite_is_rejected(duration_s):
    with pytest.raises(BadInput, match="positive and finite"):
        times("poisson:1", duration_s=duration_s)


@pytest.mark.parametrize("text", ["constant:6e6", "burst:60000000/100", "steps:1e300,1"])
def test_a_schedule_that_is_too_long_is_rejected(text):
    with pytest.raises(BadInput, match="reduce the rate or the duration"):
        times(text)


def test_a_closed_loop_has_no_schedule_and_no_rate():
    with pytest.raises(BadInput, match="no schedule"):
        times("closed:4")
    with pytest.raises(BadInput, match="use constant, poisson"):
        with_rate(ClosedLoop(4), 10)


@given(st.integers(0, 200), st.integers(1, 9))
def test_all_senders_together_have_the_whole_schedule(count, senders):
    whole = np.arange(count, dtype=np.float64)
    shares = [share_of(whole, sender, senders) for sender in range(senders)]
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), whole)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_trace_contains_times_and_sizes(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("# seconds, images\n0.5,1\n\n0.5,8  # together\n2.25,4\n10,1\n99,1\n")
    found = schedule(parse_arrivals(f"trace:{file}"), duration_s=10, seed=0)
    np.testing.assert_array_equal(found.times_s, [0.5, 0.5, 2.25])
    np.testing.assert_array_equal(found.sizes, np.array([1, 8, 4], np.int32))


def test_a_trace_may_have_no_sizes(tmp_path):
    file = tmp_path / "trace.txt"
    file.write_text("0\n1.5\n")
    found = schedule(parse_arrivals(f"trace:{file}"), duration_s=10, seed=0)
    np.testing.assert_array_equal(found.times_s, [0, 1.5])
    assert found.sizes is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0\n2\n1\n", "line 3: 1 s is earlier than the line before; sort the file by time"),
        ("0\n# a comment\nsoon\n", "line 3: .*soon"),
        ("-1\n", "line 1: -1 must be at least 0"),
        ("nan\n", "line 1: nan"),
        ("0,0\n", "line 1: 0 must be at least 1"),
        ("0,1\n1\n", "add it to all lines or to none"),
    ],
)
def test_an_invalid_trace_is_rejected_with_the_line_number(tmp_path, content, message):
    file = tmp_path / "trace.txt"
    file.write_text(content)
    with pytest.raises(BadInput, match=message):
        schedule(Trace(file), duration_s=10, seed=0)


def test_a_missing_trace_is_rejected_with_its_path(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere\.txt: no such file"):
        schedule(Trace(tmp_path / "nowhere.txt"), duration_s=10, seed=0)


def test_a_run_file_is_a_trace(tmp_path):
    file = tmp_path / "run.jsonl.gz"
    each = dict.fromkeys(Record._fields, 2.0) | {"outcome": "ok"}
    with RunWriter(file, Plan(), machine="", started="", version="") as writer:
        writer.write(
            [Record(**each | {"planned_s": 1.5, "images": 8}), Record(**each | {"planned_s": 0.25, "images": 2})]
        )
    found = schedule(Trace(file), duration_s=10, seed=0)
    np.testing.assert_array_equal(found.times_s, [0.25, 1.5])
    np.testing.assert_array_equal(found.sizes, [2, 8])


@pytest.mark.parametrize(
    ("text", "sizes"), [("4", ((4, 1.0),)), ("1:0.8,8:0.2", ((1, 0.8), (8, 0.2))), ("1:3,2:1", ((1, 0.75), (2, 0.25)))]
)
def test_sizes_are_parsed_and_their_shares_scaled_to_one(text, sizes):
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "1,2", "1:0.5,2", "1:0.5,1:0.5", "1:0", "1:-1,2:1", "1:nan", "many"]
)
def test_invalid_sizes_are_rejected_with_an_example(text):
    with pytest.raises(BadInput, match=r"use one size such as 4, or a mix such as 1:0\.8,8:0\.2"):
        parse_sizes(text)


def test_sizes_are_drawn_according_to_their_shares():
    drawn = draw_sizes(((1, 0.8), (8, 0.2)), count=10_000, seed=0)
    assert drawn.dtype == np.int32
    assert set(drawn.tolist()) == {1, 8}
    assert abs(int((drawn == 8).sum()) - 2000) < 200  # five standard deviations
