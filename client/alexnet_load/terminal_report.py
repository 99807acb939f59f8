"""Output of the commands: tables for people on stdout, one JSON line at the end for programs, progress on stderr.

Never imports matplotlib, which takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from alexnet_client.terminal import console, print_json
from alexnet_load.bottleneck import Bottleneck, find_bottleneck
from alexnet_load.compare import CONFIDENCE, Comparison
from alexnet_load.run import Plan, Run
from alexnet_load.runner import Progress
from alexnet_load.slo import Slo
from alexnet_load.slo_search import SearchResult
from alexnet_load.summary import PERCENTILES, Summary, as_json, percentile_ms, percentiles, summarize, warnings
from alexnet_load.sweep import CurvePoint, find_knee
from alexnet_load.tune import Tuned

COLOURS = {"regression": "red", "improvement": "green", "undecided": "yellow"}


def _stderr(quiet: bool) -> Console:
    """Progress goes to stderr, so that stdout contains only results."""
    return Console(stderr=True, markup=False, highlight=False, quiet=quiet)


def status(text: str, *, quiet: bool) -> None:
    """Print a line about a long command in progress."""
    _stderr(quiet).print(text, soft_wrap=True)


@contextmanager
def progress(title: str, *, seconds: float, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar on a terminal while the block runs; yield the function that updates it."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}")
    stderr = _stderr(quiet)
    with Bar(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(title, total=seconds, metrics="starting the senders")

        def show(state: Progress) -> None:
            p99 = "-" if state.p99_ms is None else f"{state.p99_ms:.1f} ms"
            metrics = f"{state.rate:.0f} answers/s, p99 {p99}, {state.failed:,} of {state.ended:,} requests failed"
            bar.update(task, completed=min(seconds, state.elapsed_s), metrics=metrics)

        yield show


def report_run(run: Run, *, page: Path | None, slo: Slo | None, quiet: bool) -> bool:
    """Print the results of a run and write its HTML page; return whether it meets the SLO.

    Raises:
        ClientError: the page cannot be written.
    """
    summary = summarize(run)
    bottleneck = find_bottleneck(summary, run.client, run.server)
    content = as_json(summary, run) | {"bottleneck": asdict(bottleneck)}
    met = slo is None or slo.met(percentile_ms(summary.response, slo.percentile), summary.error_share)
    if slo is not None:
        content["slo"] = {"limits": str(slo), "met": met}
    if page is not None:
        from alexnet_load.html_report import write_run_page

        write_run_page(page, run, summary, bottleneck, slo_ms=None if slo is None else slo.limit_ms)
        content["page"] = str(page)
    if not quiet:
        console.print(run_table(run, summary, bottleneck, warnings=warnings(run, summary)))
        if slo is not None:
            console.print(Text(f"SLO {'met' if met else 'violated'}: {slo}", style="green" if met else "red"))
        if page is not None:
            console.print(f"HTML page: {page}", soft_wrap=True)
    print_json(content)
    return met


def report_search(result: SearchResult, slo: Slo, *, quiet: bool) -> None:
    """Print the result of an SLO search."""
    if not quiet:
        violated = "" if result.violated_at is None else f", violated at {result.violated_at:.4g}"
        text = f"SLO met up to {result.rate:.4g} requests/s{violated}" if result.rate else "SLO violated at all rates"
        console.print(Text(f"{text}: {slo}", style="green" if result.rate else "red"))
        for line in (result.confidence, result.end_reason):
            if line:
                console.print(line, soft_wrap=True)
    print_json({"slo": str(slo), **_finite(asdict(result))})


def report_sweep(points: Sequence[CurvePoint], plan: Plan, *, slo: Slo | None, page: Path | None, quiet: bool) -> None:
    """Print the result of a sweep and write its HTML page.

    Raises:
        ClientError: the page cannot be written.
    """
    knee = find_knee([each.image_rate for each in points], [each.p99_ms for each in points])
    slo_ms = None if slo is None else slo.limit_ms
    if page is not None:
        from alexnet_load.html_report import write_sweep_page

        write_sweep_page(page, points, plan, slo_ms=slo_ms, knee=knee)
    if not quiet:
        console.print(sweep_table(points, slo_ms=slo_ms, knee=knee))
        if page is not None:
            console.print(f"HTML page: {page}", soft_wrap=True)
    content = {"plan": asdict(plan), "points": [asdict(each) for each in points], "knee": knee}
    print_json(_finite(content | {"page": page and str(page)}))


def report_tuning(tuned: Tuned, slo: Slo, path: Path | None, *, quiet: bool) -> None:
    """Print the result of tuning; ``path`` is the written configuration."""
    if not quiet:
        console.print(tuning_table(tuned))
        if path is None:
            console.print(Text(f"No setting meets the SLO at any rate: {slo}", style="red"))
        else:
            better = tuned.best != tuned.default
            text = f"Best setting: {tuned}." if better else "No setting is clearly better than the default."
            console.print(Text(text, style="green"))
            console.print(f"Configuration: {path}. Serve it with --config-name {path.stem}", soft_wrap=True)
    print_json(_finite({"slo": str(slo), **asdict(tuned), "configuration": path and str(path)}))


def report_comparison(comparison: Comparison, *, quiet: bool) -> None:
    """Print the comparison of two runs."""
    if not quiet:
        console.print(comparison_table(comparison))
    print_json(_finite({**asdict(comparison), "regressed": comparison.regressed}))


def run_table(run: Run, summary: Summary, bottleneck: Bottleneck, *, warnings: Sequence[str]) -> Group:
    """Return warnings, latencies, rates, errors and the bottleneck of a run."""
    loop = "closed loop" if run.plan.closed_loop else "open loop"
    title = Text(_printable(f"{run.plan.model}: {loop}, {run.plan.arrivals}"))
    table = Table("ms", "response", "service", "load generator lag", title=title)
    columns = [percentiles(each) for each in (summary.response, summary.service, summary.lag)]
    for name in [*(f"p{each:g}" for each in PERCENTILES), "max"]:
        if any(name in column for column in columns):
            table.add_row(name, *(f"{column[name]:.2f}" if name in column else "" for column in columns))
    lines = [
        Text(
            f"{summary.ok_rate:.1f} of {summary.planned_rate:.1f} requests/s answered, {summary.image_rate:.1f} images/s, "
            f"measured for {summary.seconds:.1f} s"
        )
    ]
    examples = run.client.errors if run.client is not None else {}
    lines += [
        Text(f"{count:,} requests failed: {_error(name, examples)}", style="red")
        for name, count in summary.errors.items()
    ]
    lines.append(Text(f"Bottleneck: {bottleneck.name}. {bottleneck.reason}", style="bold"))
    lines += [Text(f"  {fact}") for fact in bottleneck.facts]
    if run.server is None and run.server_missing:
        lines.append(Text(f"No server statistics: {_printable(run.server_missing)}", style="yellow"))
    return Group(*(Text(each, style="bold red") for each in warnings), table, *lines)


def comparison_table(comparison: Comparison) -> Group:
    """Return the metrics of two runs side by side."""
    table = Table("metric", "before", "after", "ratio", f"{CONFIDENCE:.0%} interval", "result")
    for row in comparison.rows:
        interval = "" if math.isnan(row.low) else f"{row.low:.3f} - {row.high:.3f}"
        result = Text(row.result, style=COLOURS.get(row.result, ""))
        values = _number(row.a, ".4g"), _number(row.b, ".4g"), _number(row.ratio, ".3f")
        table.add_row(row.name, *values, interval, result)
    different = [Text(f"The runs differ in {_printable(each)}", style="yellow") for each in comparison.differences]
    limits = Text(
        f"Limits: {comparison.max_change:.0%} worse, {comparison.max_errors:.0%} more errors (the ratio of the share of errors "
        "is the difference)."
    )
    return Group(*different, table, limits)


def sweep_table(points: Sequence[CurvePoint], *, slo_ms: float | None, knee: int | None) -> Table:
    """Return the rates of a sweep."""
    table = Table("requests/s", "answered images/s", "p50, ms", "p99, ms", "errors", "")
    for place, point in enumerate(points):
        violated = slo_ms is not None and point.p99_ms > slo_ms
        p99 = Text(_number(point.p99_ms, ".1f"), style="red" if violated else "")
        rates = f"{point.rate:.4g}", f"{point.image_rate:.1f}"
        table.add_row(*rates, _number(point.p50_ms, ".1f"), p99, f"{point.errors:.2%}", "knee" if place == knee else "")
    return table


def tuning_table(tuned: Tuned) -> Table:
    """Return the tried settings, best first."""
    table = Table("setting", "requests/s", title="Highest rate that meets the SLO")
    for setting, rate in tuned.tried:
        table.add_row(
            Text(setting.describe(tuned.default), style="green" if setting == tuned.best else ""), f"{rate:.0f}"
        )
    return table


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""


def _error(name: str, examples: dict[str, str]) -> str:
    example = f" (example: {_printable(examples[name])})" if examples.get(name) else ""
    return f"{name.replace('_', ' ')}{example}"


def _printable(text: str) -> str:
    """Remove escape sequences from the texts of servers, because a terminal would execute them."""
    return "".join(each if each.isprintable() else " " for each in text)


def _finite(value: Any) -> Any:
    """Replace infinite numbers and NaN, which JSON does not have, by None."""
    match value:
        case dict():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case float() if not math.isfinite(value):
            return None
    return value
