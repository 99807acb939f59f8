"""A run, a comparison and a sweep as tables for a terminal. Never imports matplotlib; markup is read in no text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from alexnet_load.run import Run
from alexnet_load.summary import PERCENTILES, Summary, percentiles
from alexnet_load.tuning import Tuned, describe
from alexnet_load.verdict import Verdict

if TYPE_CHECKING:  # matplotlib and what draws are for pages
    from alexnet_load.compare import Comparison
    from alexnet_load.knee import CurvePoint

COLOURS = {"regression": "red", "improvement": "green", "undecided": "yellow"}


def run_table(run: Run, summary: Summary, verdict: Verdict, *, warnings: Sequence[str]) -> Group:
    """Latencies side by side, rates, errors, and what held the run back; warnings in red come first."""
    loop = "closed loop" if run.plan.closed_loop else "open loop"
    title = Text(_printable(f"{run.plan.model}: {loop}, {run.plan.arrivals}"))
    table = Table("ms", "response", "service", "sender's lag", title=title)
    columns = [percentiles(each) for each in (summary.response, summary.service, summary.lag)]
    for name in [*(f"p{each:g}" for each in PERCENTILES), "max"]:
        if any(name in column for column in columns):
            table.add_row(name, *(f"{column[name]:.2f}" if name in column else "" for column in columns))
    lines = [
        Text(
            f"{summary.ok_rate:.1f} of {summary.planned_rate:.1f} requests/s answered, {summary.image_rate:.1f} images/s, "
            f"over {summary.seconds:.1f} s"
        )
    ]
    errors = run.client.errors if run.client is not None else {}
    lines += [
        Text(f"{count:,} {name.replace('_', ' ')}{_example(errors.get(name, ''))}", style="red")
        for name, count in summary.errors.items()
    ]
    lines.append(Text(f"{verdict.bound}: {verdict.because}", style="bold"))
    lines += [Text(f"  {fact}") for fact in verdict.facts]
    if run.server is None and run.server_missing:
        lines.append(Text(f"The server's side is missing: {_printable(run.server_missing)}", style="yellow"))
    return Group(*(Text(each, style="bold red") for each in warnings), table, *lines)


def comparison_table(comparison: Comparison) -> Group:
    """Two runs side by side."""
    table = Table("figure", "before", "after", "ratio", f"{comparison.confidence:.0%} interval", "verdict")
    for row in comparison.rows:
        interval = "" if math.isnan(row.low) else f"{row.low:.3f} - {row.high:.3f}"
        ratio = "" if math.isnan(row.ratio) else f"{row.ratio:.3f}"
        verdict = Text(row.verdict, style=COLOURS.get(row.verdict, ""))
        table.add_row(row.name, _figure(row.a, ".4g"), _figure(row.b, ".4g"), ratio, interval, verdict)
    different = [Text(f"The runs differ in {_printable(each)}", style="yellow") for each in comparison.differences]
    share = Text(f"Shares are compared by their difference; what may be worse by {comparison.share:.0%} is none.")
    return Group(*different, table, share)


def curve_table(points: Sequence[CurvePoint], *, objective_ms: float | None, knee: int | None) -> Table:
    """The rates of a sweep."""
    table = Table("requests/s", "images/s answered", "p50, ms", "p99, ms", "errors", "")
    for place, point in enumerate(points):
        late = objective_ms is not None and point.p99_ms > objective_ms
        p99 = Text(_figure(point.p99_ms, ".1f"), style="red" if late else "")
        mark = "knee" if place == knee else ""
        rates = f"{point.rate:.4g}", f"{point.image_rate:.1f}"
        table.add_row(*rates, _figure(point.p50_ms, ".1f"), p99, f"{point.errors:.2%}", mark)
    return table


def _figure(value: float, form: str) -> str:
    """Nothing for what could not be measured."""
    return format(value, form) if math.isfinite(value) else ""


def _example(text: str) -> str:
    return f", such as: {_printable(text)}" if text else ""


def _printable(text: str) -> str:
    """Texts of servers may hold escape sequences, which a terminal would obey."""
    return "".join(each if each.isprintable() else " " for each in text)


def tuned_table(tuned: Tuned) -> Table:
    """The settings that were tried, best first, and what each change of the winner is worth."""
    table = Table("setting", "requests/s", "rung", title="Settings tried; a higher rung was measured with more care")
    for each in tuned.tried:
        mark = "bold green" if each.setting == tuned.best else ""
        table.add_row(Text(describe(each.setting, tuned.default), style=mark), f"{each.rate:.0f}", str(each.rung))
    for name, worth in tuned.worth.items():
        table.add_row(f"the best without its change of {name}", f"1/{worth:.2f} of the best", "")
    return table
