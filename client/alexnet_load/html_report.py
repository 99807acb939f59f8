"""The HTML reports of a run and of a sweep: each is one file without external references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alexnet_client.files import write_text, writing
from alexnet_load import charts
from alexnet_load.bottleneck import Bottleneck, phases_s
from alexnet_load.run import OK, Plan, Run
from alexnet_load.summary import PERCENTILES, Summary, percentiles, warnings
from alexnet_load.sweep import CurvePoint


def write_run_page(
    path: Path, run: Run, summary: Summary, bottleneck: Bottleneck, *, slo_ms: float | None = None
) -> None:
    """Write the report of a run; ``slo_ms`` is a limit of the response time to show in the charts, milliseconds.

    Raises:
        BadInput: the file cannot be written.
    """
    rows = {name: percentiles(getattr(summary, name)) for name in ("response", "service", "lag")}
    known = [name for name in ("p99", "p95", "p90", "max") if name in rows["response"]]
    _write(
        path,
        "run.html.j2",
        run=run,
        plan=run.plan,
        summary=summary,
        bottleneck=bottleneck,
        warnings=warnings(run, summary),
        charts={name: Markup(svg) for name, svg in _charts(run, summary, slo_ms).items()},  # noqa: S704  our own SVG
        rows=rows,
        names=[*(f"p{each:g}" for each in PERCENTILES if f"p{each:g}" in rows["lag"] | rows["response"]), "max"],
        highest=known[0] if known else "p99",
        failed=sum(summary.errors.values()),
        errors=_errors(run, summary),
        counts=_counts(run),
    )


def write_sweep_page(
    path: Path, points: Sequence[CurvePoint], plan: Plan, *, slo_ms: float | None, knee: int | None
) -> None:
    """Write the report of a sweep.

    Raises:
        BadInput: the file cannot be written.
    """
    curve = Markup(charts.curve(points, slo_ms=slo_ms, knee=knee))  # noqa: S704  our own SVG
    _write(path, "sweep.html.j2", plan=plan, points=points, knee=knee, slo_ms=slo_ms, curve=curve)


def _charts(run: Run, summary: Summary, slo_ms: float | None) -> dict[str, str]:
    plan, client, server = run.plan, run.client, run.server
    drawn = {"throughput": charts.throughput(summary, warm_up_s=plan.warm_up_s)}
    if summary.response.total_count:
        drawn |= {
            "latency": charts.latency_over_time(summary, warm_up_s=plan.warm_up_s, slo_ms=slo_ms),
            "percentiles": charts.percentile_curve(summary, slo_ms=slo_ms),
            "distribution": charts.distribution(summary),
        }
    if client is not None and client.batches:
        drawn["batches"] = charts.batch_sizes(client.batches, server.batches if server else {})
        drawn["phases"] = charts.stacked_phases(phases_s(client, server))
    return drawn


def _errors(run: Run, summary: Summary) -> list[tuple[str, int, int, str]]:
    """Outcome, failed requests of the measured period, failed attempts of the whole run, example; most frequent first."""
    attempts, examples = ({}, {}) if run.client is None else (run.client.attempts, run.client.errors)
    kinds = dict.fromkeys(name for name in (*summary.errors, *attempts, *examples) if name != OK)
    rows = [(name, summary.errors.get(name, 0), attempts.get(name, 0), examples.get(name, "")) for name in kinds]
    return sorted(rows, key=lambda row: (-row[1], -row[2]))


def _counts(run: Run) -> list[tuple[str, int, int | None]]:
    """Name, count of the client, count of the server; None without server statistics."""
    client, server = run.client, run.server
    if client is None:
        return []
    ok = client.attempts.get(OK, 0)
    return [
        ("requests answered", ok, server.success if server else None),
        ("requests failed", sum(client.attempts.values()) - ok, server.failure if server else None),
        ("images answered", client.images, server.inferences if server else None),
    ]


def _write(path: Path, template: str, **content: Any) -> None:
    environment = Environment(
        loader=PackageLoader("alexnet_load", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ms"] = _ms
    environment.filters["count"] = lambda number: f"{number:,}".replace(",", "\u202f")
    text = environment.get_template(template).render(**content)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _ms(value: float | None) -> str:
    """Three digits, as in the histograms."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001  an en dash is what the page shows
    if value >= 1000:
        return f"{value / 1000:.1f} s" if value >= 10_000 else f"{value / 1000:.2f} s"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} ms"
