"""The tables of a run, a comparison, a sweep and a tuning."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from alexnet_load.bottleneck import Bottleneck
from alexnet_load.compare import Comparison, Row
from alexnet_load.run import ClientStatistics
from alexnet_load.slo import Slo
from alexnet_load.summary import percentiles, summarize
from alexnet_load.sweep import CurvePoint
from alexnet_load.terminal_report import comparison_table, report_tuning, run_table, sweep_table
from alexnet_load.tune import Setting, Tuned

BOTTLENECK = Bottleneck("compute", "The model instances were busy 96% of the time.", ("mean batch size: 5.1 images",))


def shown(what, *, colours=False):
    """Text of a terminal without repeated spaces; with escape sequences if ``colours``."""
    console = Console(width=140, force_terminal=colours, color_system="standard" if colours else None, markup=True)
    with console.capture() as captured:
        console.print(what)
    return captured.get() if colours else re.sub(" +", " ", captured.get())


@pytest.fixture
def run(make_records, make_run):
    numbers = np.arange(2000)
    times = {"sent_s": 0.01 * numbers + 0.0001, "took_s": 0.01 + 0.00001 * numbers}
    records = make_records(0.01 * numbers, **times, outcome=numbers % 100 == 99)
    client = ClientStatistics(wall_s=20.0, errors={"deadline_exceeded": "no answer within 10 s"})
    return replace(make_run(records, client=client), server_missing="no permission")


def table_of(run, *, warnings=(), **options):
    return shown(run_table(run, summarize(run), BOTTLENECK, warnings=warnings), **options)


def test_the_table_shows_latencies_side_by_side_rates_errors_and_the_bottleneck(run):
    summary, text = summarize(run), table_of(run)
    columns = [percentiles(each) for each in (summary.response, summary.service, summary.lag)]
    for name in ("p50", "p99", "max"):
        assert f"│ {name} │ {' │ '.join(f'{each[name]:.2f}' for each in columns)} │" in text
    assert "p99.9 " not in text, "2,000 requests are too few"
    assert f"{summary.ok_rate:.1f} of {summary.planned_rate:.1f} requests/s answered" in text
    assert f"{summary.image_rate:.1f} images/s" in text
    assert "20 requests failed: deadline exceeded (example: no answer within 10 s)" in text
    assert "Bottleneck: compute. The model instances were busy 96% of the time." in text
    assert "mean batch size: 5.1 images" in text
    assert "No server statistics: no permission" in text
    assert "20 requests failed: deadline exceeded\n" in table_of(replace(run, client=None)), "without an example"


def test_warnings_are_shown_first_in_red(run):
    text = table_of(run, warnings=["The run was interrupted."], colours=True)
    assert text.startswith("\x1b[1;31mThe run was interrupted.\x1b[0m")


def test_texts_of_servers_are_neither_markup_nor_escape_sequences(run):
    odd = "[red]x[/red] [/] \x1b[2J\x1b]0;title\x07 y"
    client = replace(run.client, errors={"deadline_exceeded": odd})
    text = table_of(replace(run, client=client, server_missing=odd, plan=replace(run.plan, model=odd)))
    assert text.count("[red]x[/red] [/]") == 3
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_run_without_requests_has_an_empty_table(run, make_records):
    plan = replace(run.plan, arrivals="closed:4")
    text = table_of(replace(run, records=make_records([]), plan=plan))
    assert "alexnet: closed loop, closed:4" in text
    assert "0.0 of 0.0 requests/s answered" in text
    assert "p50" not in text


def test_a_comparison_shows_both_runs_their_ratio_and_its_interval():
    rows = (
        Row("p99 response, ms", 20.0, 30.0, 1.5, 1.2, 1.7, "regression"),
        Row("images/s", 100.0, 130.0, 1.3, 1.25, 1.35, "improvement"),
        Row("p50 response, ms", 10.0, 10.1, 1.01, 0.99, 1.02, "no difference"),
        Row("p50 service, ms", math.nan, 10.0, math.nan, math.nan, math.nan, "undecided"),
    )
    table = comparison_table(Comparison(rows, ("arrivals: constant:1 and [b]constant:2",), 0.05, 0.01))
    text, coloured = shown(table), shown(table, colours=True)
    assert "95% interval" in text
    assert "│ p99 response, ms │ 20 │ 30 │ 1.500 │ 1.200 - 1.700 │ regression │" in text
    assert "│ p50 service, ms │ │ 10 │ │ │ undecided │" in text
    assert "The runs differ in arrivals: constant:1 and [b]constant:2" in text
    for colour, result in ((31, "regression"), (32, "improvement"), (33, "undecided")):
        assert f"\x1b[{colour}m{result}" in coloured


def test_a_sweep_shows_its_knee_and_slo_violations():
    points = [CurvePoint(50, 60.0, 12.0, 20.0, 0.0), CurvePoint(100, 110.0, 15.0, 90.0, 0.015)]
    points.append(CurvePoint(200, 0.0, math.inf, math.inf, 1.0))
    table = sweep_table(points, slo_ms=50.0, knee=0)
    text, coloured = shown(table), shown(table, colours=True)
    assert "│ 50 │ 60.0 │ 12.0 │ 20.0 │ 0.00% │ knee │" in text
    assert "│ 100 │ 110.0 │ 15.0 │ 90.0 │ 1.50% │ │" in text
    assert "│ 200 │ 0.0 │ │ │ 100.00% │ │" in text, "there is no latency without answers"
    assert "\x1b[31m90.0" in coloured
    assert "\x1b[31m20.0" not in coloured
    assert "\x1b[31m" not in shown(sweep_table(points, slo_ms=None, knee=None), colours=True)


def test_tuning_is_reported_with_valid_json(capsys, tmp_path):
    default, best = Setting(1, 0, 0, 0), Setting(2, 1, 0, 8)
    tuned = Tuned(best, default, math.inf, 1.2, math.inf, ((best, 50.0), (default, 0.0)))
    report_tuning(tuned, Slo(99, 50), tmp_path / "tuned.pbtxt", quiet=False)
    *lines, last = capsys.readouterr().out.splitlines()
    text = " ".join(" ".join(lines).split())
    assert "instances 2, threads 1, preferred batch 8 │ 50" in text
    assert "Serve it with --config-name tuned" in text
    found = json.loads(last)
    assert (found["speedup"], found["best"]["instances"], found["tried"][1][1]) == (None, 2, 0.0)
