"""Arrival processes and request sizes: their syntax, and the distributions of the schedules."""

import numpy as np
import pytest
from scipy import stats

from alexnet_client.errors import BadInput
from alexnet_load.arrivals import Trace, draw_sizes, parse_arrivals, parse_sizes, schedule
from alexnet_load.run import Plan
from alexnet_load.run_file import Record, RunWriter


def times(text: str, duration_s: float = 10.0, seed: int = 0):
    return schedule(parse_arrivals(text), duration_s=duration_s, seed=seed).times_s


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
    np.testing.assert_array_equal(times("constant:997", duration_s=1003.0), np.arange(997 * 1003) / 997)


def test_poisson_gaps_are_exponential_and_counts_have_a_variance_equal_to_their_mean():
    """Kolmogorov-Smirnov test of the gaps; the index of dispersion of 100 counts is chi-square distributed with 99 degrees of
    freedom. 100 seeds at 1 %: more than 6 failures have a probability of 1e-4 (binomial)."""
    gaps_failed = counts_failed = 0
    for seed in range(100):
        found = times("poisson:200", seed=seed)
        counts, _ = np.histogram(found, bins=100, range=(0, 10))
        tail = stats.chi2.cdf(counts.var(ddof=1) / counts.mean() * 99, 99)
        gaps_failed += stats.kstest(np.diff(found), "expon", args=(0, 1 / 200), method="asymp").pvalue < 0.01
        counts_failed += min(tail, 1 - tail) < 0.005
    assert gaps_failed <= 6
    assert counts_failed <= 6


@pytest.mark.parametrize("text", ["ramp:0-400", "ramp:400-0", "ramp:100-300", "ramp:200-200.0000001"])
def test_a_ramp_is_a_poisson_process_in_expected_counts(text):
    """Given their number, expected counts are uniform; 50 seeds at 1 %: more than 5 have a probability of 1e-5."""
    ramp = parse_arrivals(text)
    slope = (ramp.last - ramp.first) / 10
    failures = 0
    for seed in range(50):
        found = times(text, seed=seed)
        expected = (ramp.first * found + slope * found**2 / 2) / 2000
        failures += stats.kstest(expected, "uniform", method="asymp").pvalue < 0.01
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
    "text",
    ["constant:0.1", "constant:7.3", "poisson:50", "ramp:0-80", "ramp:1e-05-2e+02", "steps:9,0,80", "burst:2/0.3"],
)
def test_a_schedule_is_sorted_within_the_run_and_depends_only_on_the_seed(text):
    for duration_s, seed in ((0.01, 0), (0.3, 1), (30.0, 2)):
        found = times(text, duration_s, seed)
        assert np.all(np.diff(found) >= 0)
        assert np.all((found >= 0) & (found < duration_s))
        np.testing.assert_array_equal(found, times(text, duration_s, seed))
    random = text.startswith(("poisson", "ramp", "steps"))
    assert np.array_equal(found, times(text, duration_s, seed=3)) != random


@pytest.mark.parametrize(
    ("text", "duration_s", "message"),
    [
        *(("poisson:1", each, "positive and finite") for each in (0.0, -1.0, float("nan"), float("inf"))),
        *((each, 10, "reduce the rate") for each in ("constant:6e6", "burst:60000000/100", "steps:1e300,1")),
        ("closed:4", 10, "no schedule"),
        ("trace:/no/where.txt", 10, r"where\.txt: no such file"),
    ],
)
def test_arrivals_without_a_schedule_are_rejected(text, duration_s, message):
    with pytest.raises(BadInput, match=message):
        times(text, duration_s)


@pytest.mark.parametrize(
    ("content", "times_s", "sizes"),
    [
        ("# seconds, images\n0.5,1\n\n0.5,8  # together\n2.25,4\n10,1\n99,1\n", [0.5, 0.5, 2.25], [1, 8, 4]),
        ("0\n1.5\n", [0, 1.5], None),
    ],
)
def test_a_trace_contains_times_and_optional_sizes(tmp_path, content, times_s, sizes):
    (tmp_path / "my:trace.csv").write_text(content)
    found = schedule(parse_arrivals(f"trace:{tmp_path}/my:trace.csv"), duration_s=10, seed=0)
    assert found.times_s.tolist() == times_s
    assert (None if found.sizes is None else found.sizes.tolist()) == sizes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0\n2\n1\n", "line 3: 1 s is earlier than the line before; sort the file by time"),
        (b"0\n# a comment\nsoon\n", "line 3: .*soon"),
        (b"-1\n", "line 1: -1 must be at least 0"),
        (b"nan\n", "line 1: nan"),
        (b"0,0\n", "line 1: 0 must be at least 1"),
        (b"0,1\n1\n", "add it to all lines or to none"),
        (b"\xff\xfe", "not a text file"),
    ],
)
def test_an_invalid_trace_is_rejected_with_the_line_number(tmp_path, content, message):
    (tmp_path / "trace.txt").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        schedule(Trace(tmp_path / "trace.txt"), duration_s=10, seed=0)


def test_a_run_file_is_a_trace(tmp_path):
    file = tmp_path / "run.jsonl.gz"
    with RunWriter(file, Plan(), machine="", started="", version="") as writer:
        writer.write([Record(1.5, 2, 2, 0, 8, "ok"), Record(0.25, 2, 2, 0, 2, "ok")])
    found = schedule(Trace(file), duration_s=10, seed=0)
    assert (found.times_s.tolist(), found.sizes.tolist()) == ([0.25, 1.5], [2, 8])


@pytest.mark.parametrize(
    ("text", "sizes"), [("4", ((4, 1.0),)), ("1:0.8,8:0.2", ((1, 0.8), (8, 0.2))), ("1:3,2:1", ((1, 0.75), (2, 0.25)))]
)
def test_sizes_are_drawn_according_to_their_shares_which_are_scaled_to_one(text, sizes):
    assert parse_sizes(text) == sizes
    drawn = draw_sizes(sizes, count=10_000, seed=0).tolist()
    assert set(drawn) == {size for size, _ in sizes}
    assert all(abs(drawn.count(size) - 10_000 * share) < 250 for size, share in sizes)  # five standard deviations


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "1,2", "1:0.5,2", "1:0.5,1:0.5", "1:0", "1:-1,2:1", "1:nan", "many"]
)
def test_invalid_sizes_are_rejected_with_an_example(text):
    with pytest.raises(BadInput, match=r"use one size such as 4, or a mix such as 1:0\.8,8:0\.2"):
        parse_sizes(text)
