"""What a terminal shows of a run, a comparison and a sweep."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from alexnet_load.compare import Comparison, Row
from alexnet_load.knee import CurvePoint
from alexnet_load.run import OK, ClientSide, Plan, Records, Run
from alexnet_load.summary import percentiles, summarize
from alexnet_load.table import comparison_table, curve_table, run_table
from alexnet_load.verdict import Verdict

VERDICT = Verdict("compute", "The instances worked 96% of the time.", ("5.1 images in the mean execution",))


def shown(what, *, width=120, colours=False):
    """As in a terminal; with the escape sequences if ``colours``."""
    console = Console(width=width, force_terminal=colours, color_system="standard" if colours else None, markup=True)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def a_run(*, count=2000, example="no answer within 10 s", missing="nobody may ask", **plan):
    planned = np.arange(count) / 100
    took = 0.01 + 0.00001 * np.arange(count)
    outcome = (np.arange(count) % 100 == 99).astype(np.int16)
    found = Records(
        planned,
        planned + 0.0001,
        planned + took,
        np.full(count, 0.0001),
        np.ones(count, np.int32),
        outcome,
        (OK, "deadline_exceeded"),
    )
    client = ClientSide(wall_s=20.0, errors={"deadline_exceeded": example} if example else {})
    asked = Plan(**{"arrivals": "constant:100", "duration_s": 20.0, **plan})
    return Run(asked, found, client, None, missing, "here", "2026-01-02T03:04:05+00:00", "1")


def table_of(run, *, warnings=(), **options):
    return shown(run_table(run, summarize(run), VERDICT, warnings=warnings), **options)


def test_latencies_stand_side_by_side_and_a_percentile_without_enough_requests_has_no_line():
    run = a_run()
    summary, text = summarize(run), table_of(run)
    response, service, lag = (percentiles(each) for each in (summary.response, summary.service, summary.lag))
    for name in ("p50", "p99", "max"):
        row = re.search(rf"│ {re.escape(name)} +│ *([\d.]+) *│ *([\d.]+) *│ *([\d.]+) *│", text)
        assert row.groups() == (f"{response[name]:.2f}", f"{service[name]:.2f}", f"{lag[name]:.2f}")
    assert "p99.9 " not in text


def test_rates_errors_verdict_and_facts_are_said():
    run = a_run()
    summary, text = summarize(run), table_of(run)
    assert (
        f"{summary.ok_rate:.1f} of {summary.planned_rate:.1f} requests/s answered, {summary.image_rate:.1f} images/s"
        in text
    )
    assert f"{summary.errors['deadline_exceeded']} timed out, such as: no answer within 10 s" in text
    assert "compute: The instances worked 96% of the time." in text
    assert "5.1 images in the mean execution" in text
    assert "The server's side is missing: nobody may ask" in text


def test_an_error_without_an_example_is_counted_all_the_same():
    run = a_run(example="")
    assert f"{summarize(run).errors['deadline_exceeded']} timed out\n" in re.sub(" +\n", "\n", table_of(run))


def test_warnings_come_first_and_in_red():
    lines = table_of(a_run(), warnings=["The sender was the limit."], colours=True).splitlines()
    assert lines[0] == "\x1b[1;31mThe sender was the limit.\x1b[0m"


def test_a_loop_is_called_what_it_is():
    assert "alexnet: open loop, constant:100" in table_of(a_run())
    assert "alexnet: closed loop, closed:4" in table_of(a_run(arrivals="closed:4"))


def test_texts_from_outside_are_neither_markup_nor_commands_to_the_terminal():
    odd = "[red]x[/red] [/] \x1b[2J\x1b]0;title\x07 y"
    text = table_of(a_run(example=odd, missing=odd, model=odd))
    assert text.count("[red]x[/red] [/]") == 3
    assert "\x1b" not in text
    assert "\x07" not in text


def test_without_any_request_the_table_is_empty():
    text = table_of(a_run(count=0))
    assert "0.0 of 0.0 requests/s answered" in text
    assert "p50" not in text


@pytest.fixture
def comparison():
    rows = (
        Row("p99 response, ms", 20.0, 30.0, 1.5, 1.2, 1.7, "regression"),
        Row("images a second", 100.0, 130.0, 1.3, 1.25, 1.35, "improvement"),
        Row("p50 response, ms", 10.0, 10.1, 1.01, 0.99, 1.02, "no difference"),
        Row("p50 service, ms", math.nan, 10.0, math.nan, math.nan, math.nan, "undecided"),
    )
    return Comparison(rows, ("arrivals: constant:1 and [b]constant:2",), 0.05, 0.01, 0.95)


def test_a_comparison_shows_both_runs_their_ratio_and_its_interval(comparison):
    text = re.sub(" +", " ", shown(comparison_table(comparison)))
    assert "95% interval" in text
    assert "│ p99 response, ms │ 20 │ 30 │ 1.500 │ 1.200 - 1.700 │ regression │" in text
    assert "The runs differ in arrivals: constant:1 and [b]constant:2" in text


def test_what_could_not_be_compared_is_left_blank(comparison):
    text = re.sub(" +", " ", shown(comparison_table(comparison)))
    assert "│ p50 service, ms │ │ 10 │ │ │ undecided │" in text


def test_a_regression_is_red_and_an_improvement_green(comparison):
    text = shown(comparison_table(comparison), colours=True)
    assert "\x1b[31mregression" in text
    assert "\x1b[32mimprovement" in text
    assert "\x1b[33mundecided" in text


def test_a_sweep_marks_its_knee_and_what_is_later_than_the_objective():
    points = [CurvePoint(50, 60.0, 12.0, 20.0, 0.0), CurvePoint(100, 110.0, 15.0, 90.0, 0.015)]
    points.append(CurvePoint(200, 0.0, math.inf, math.inf, 1.0))
    table = curve_table(points, objective_ms=50.0, knee=0)
    text = re.sub(" +", " ", shown(table))
    assert "│ 50 │ 60.0 │ 12.0 │ 20.0 │ 0.00% │ knee │" in text
    assert "│ 100 │ 110.0 │ 15.0 │ 90.0 │ 1.50% │ │" in text
    assert "│ 200 │ 0.0 │ │ │ 100.00% │ │" in text, "there is no latency where nothing was answered"
    coloured = shown(table, colours=True)
    assert "\x1b[31m90.0" in coloured
    assert "\x1b[31m20.0" not in coloured
    assert "\x1b[31m" not in shown(curve_table(points, objective_ms=None, knee=None), colours=True)


def test_tables_need_nothing_that_draws():
    """Matplotlib takes a second to import, and a terminal has no use for it."""
    code = "import sys, alexnet_load.table; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
