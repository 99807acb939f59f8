"""The report of a run as one page that needs nothing else: charts, tables, and what they mean. No figure is made here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alexnet_client.errors import BadInput
from alexnet_load import charts
from alexnet_load.atomic import write_atomically
from alexnet_load.knee import CurvePoint
from alexnet_load.run import OK, Plan, Run
from alexnet_load.summary import PERCENTILES, Summary, percentiles
from alexnet_load.verdict import Verdict, phases_s
from alexnet_load.warn import warnings

BOUNDS = {
    "client": ("client", "is the limit, not the server"),
    "network": ("network", "or the server's front end is the limit"),
    "queue": ("queue", "of the server is the limit"),
    "compute": ("compute", "is the limit: the model's instances"),
    "nothing": ("no limit", "reached: neither client nor server was busy"),
    "unknown": ("unknown", "what the limit is"),
}
ARRIVALS = {
    "constant": "{} requests a second, evenly spaced",
    "poisson": "{} requests a second on average, at random times (Poisson)",
    "ramp": "at random times, from {1} to {2} requests a second",
    "steps": "at random times, {} requests a second in turn",
    "burst": "{1} requests at once every {2} s",
    "trace": "requests as recorded in {}",
    "closed": "{} callers who each wait for the answer",
}
SEPARATORS = {"ramp": "-", "burst": "/"}


def write_page(path: Path, run: Run, summary: Summary, verdict: Verdict, *, objective_ms: float | None = None) -> None:
    """Write the report of a run.

    Args:
        path: file to write; directories are made.
        run: what was done.
        summary: its figures.
        verdict: what held it back.
        objective_ms: limit of the response time to draw into the charts, milliseconds.

    Raises:
        BadInput: it cannot be written there.
    """
    drawn = _charts(run, summary, objective_ms)
    rows = {name: percentiles(getattr(summary, name)) for name in ("response", "service", "lag")}
    known = [name for name in ("p99", "p95", "p90", "max") if name in rows["response"]]
    _write(
        path,
        "page.html.j2",
        run=run,
        plan=run.plan,
        summary=summary,
        verdict=verdict,
        bound=BOUNDS[verdict.bound],
        warnings=warnings(run, summary),
        arrivals=_arrivals(run.plan),
        drawn={name: Markup(each) for name, each in drawn.items()},  # noqa: S704  our own SVG
        rows=rows,
        names=[*(f"p{each:g}" for each in PERCENTILES if f"p{each:g}" in rows["lag"] | rows["response"]), "max"],
        highest=known[0] if known else "p99",
        failed=sum(summary.errors.values()),
        errors=_errors(run, summary),
        totals=_totals(run),
    )


def write_curve(
    path: Path, points: Sequence[CurvePoint], plan: Plan, *, objective_ms: float | None, knee: int | None
) -> None:
    """Write the report of a sweep.

    Raises:
        BadInput: it cannot be written there.
    """
    drawn = charts.curve(points, objective_ms=objective_ms, knee=knee)
    _write(
        path,
        "sweep.html.j2",
        plan=plan,
        points=points,
        knee=knee,
        objective_ms=objective_ms,
        drawn=Markup(drawn),  # noqa: S704  our own SVG
    )


def _charts(run: Run, summary: Summary, objective_ms: float | None) -> dict[str, str]:
    plan, client, server = run.plan, run.client, run.server
    drawn = {"throughput": charts.throughput(summary, warm_up_s=plan.warm_up_s)}
    if summary.response.total_count:
        drawn |= {
            "latency": charts.latency_over_time(summary, warm_up_s=plan.warm_up_s, objective_ms=objective_ms),
            "percentiles": charts.percentile_curve(summary, objective_ms=objective_ms),
            "distribution": charts.distribution(summary),
        }
    if client is not None and client.batches:
        drawn["batches"] = charts.batch_sizes(client.batches, server.batches if server else {})
        drawn["phases"] = charts.stacked_phases(phases_s(client, server))
    return drawn


def _errors(run: Run, summary: Summary) -> list[tuple[str, int, int, str]]:
    """Kind, measured requests that failed so, attempts of the whole run that did, an example; the most frequent first."""
    attempts, examples = ({}, {}) if run.client is None else (run.client.attempts, run.client.errors)
    kinds = dict.fromkeys(name for name in (*summary.errors, *attempts, *examples) if name != OK)
    rows = [(name, summary.errors.get(name, 0), attempts.get(name, 0), examples.get(name, "")) for name in kinds]
    return sorted(rows, key=lambda row: (-row[1], -row[2]))


def _totals(run: Run) -> list[tuple[str, int, int | None]]:
    """What the client counted of its attempts, and the servers of the same; None where nobody could ask them."""
    client, server = run.client, run.server
    if client is None:
        return []
    ok = client.attempts.get(OK, 0)
    return [
        ("requests answered", ok, server.success if server else None),
        ("requests failed", sum(client.attempts.values()) - ok, server.failure if server else None),
        ("images answered", client.images, server.inferences if server else None),
    ]


def _arrivals(plan: Plan) -> str:
    """How requests came, for people."""
    kind, _, rest = plan.arrivals.partition(":")
    first, _, last = rest.partition(SEPARATORS.get(kind, ","))
    how = ARRIVALS[kind].format(rest, first, last) if kind in ARRIVALS else plan.arrivals
    return f"{'closed' if plan.closed_loop else 'open'} loop, {how}"


def _write(path: Path, template: str, **content: Any) -> None:
    """Whole or not at all: who reloads the page while it is written sees the old one."""
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadInput(f"{path}: the page cannot be written ({reason}); name another place for it") from None


def _ms(value: float | None) -> str:
    """Three digits are what the histograms hold."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001  as it is printed
    if value >= 1000:
        return f"{value / 1000:.1f} s" if value >= 10_000 else f"{value / 1000:.2f} s"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} ms"
