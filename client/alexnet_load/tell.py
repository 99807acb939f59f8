"""How commands tell what was found: tables for people, one JSON line last for machines, complaints on stderr."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from alexnet_client.errors import ClientError
from alexnet_load.knee import knee
from alexnet_load.run import Plan, Run
from alexnet_load.slo import Found, Objective
from alexnet_load.summary import as_json, percentile_ms, summarize
from alexnet_load.table import comparison_table, curve_table, run_table, tuned_table
from alexnet_load.verdict import judge
from alexnet_load.warn import warnings

if TYPE_CHECKING:  # matplotlib takes a second
    from alexnet_load.compare import Comparison
    from alexnet_load.knee import CurvePoint
    from alexnet_load.tuning import Tuned

console = Console(markup=False, highlight=False)  # error texts may hold brackets


def where(quiet: bool) -> Console:
    """Where progress is shown: on stderr, so that a pipe sees the results alone."""
    return Console(stderr=True, markup=False, highlight=False, quiet=quiet)


@contextmanager
def mistakes_told() -> Iterator[None]:
    """A user's mistake or a dead server is a line on stderr and exit status 2; status 1 is for what was not kept."""
    # What was started is ended too if this program is told to end.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    except ClientError as error:
        print(f"alexnet-load: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def tell_run(run: Run, *, page: Path | None, objective: Objective | None, quiet: bool) -> bool:
    """Say what a run was, and whether it kept the objective.

    Raises:
        ClientError: the page cannot be written.
    """
    summary = summarize(run)
    verdict = judge(summary, run.client, run.server)
    found = as_json(summary, run) | {"verdict": asdict(verdict)}
    kept = True
    if objective is not None:
        errors = sum(summary.errors.values()) / max(1, summary.requests)
        kept = objective.kept(percentile_ms(summary.response, objective.percentile), errors)
        found["slo"] = {"objective": str(objective), "kept": kept}
    if page is not None:
        from alexnet_load.page import write_page

        write_page(page, run, summary, verdict, objective_ms=None if objective is None else objective.limit_ms)
        found["page"] = str(page)
    if not quiet:
        console.print(run_table(run, summary, verdict, warnings=warnings(run, summary)))
        if objective is not None:
            console.print(Text(f"{objective}: {'kept' if kept else 'NOT kept'}", style="green" if kept else "red"))
        if page is not None:
            console.print(f"The page to look at: {page}", soft_wrap=True)
    print_json(found)
    return kept


def tell_found(found: Found, objective: Objective, *, quiet: bool) -> None:
    """Say what a search came to."""
    if not quiet:
        colour = "green" if found.rate else "red"
        bracket = "" if found.failed is None else f" (not kept at {found.failed:.4g})"
        console.print(Text(f"{objective}: kept up to {found.rate:.4g} requests/s{bracket}", style=colour))
        for line in (found.confidence, found.why):
            if line:
                console.print(line, soft_wrap=True)
    trials = [{**asdict(each), "value_ms": _finite(each.value_ms)} for each in found.trials]
    print_json({"objective": str(objective), **asdict(found), "trials": trials})


def tell_curve(
    points: Sequence[CurvePoint], plan: Plan, *, objective: Objective | None, page: Path | None, quiet: bool
) -> None:
    """Say what a sweep came to.

    Raises:
        ClientError: the page cannot be written.
    """
    place = knee([each.image_rate for each in points], [each.p99_ms for each in points])
    limit_ms = None if objective is None else objective.limit_ms
    if page is not None:
        from alexnet_load.page import write_curve

        write_curve(page, points, plan, objective_ms=limit_ms, knee=place)
    if not quiet:
        console.print(curve_table(points, objective_ms=limit_ms, knee=place))
        if page is not None:
            console.print(f"The page to look at: {page}", soft_wrap=True)
    shown = [{name: _finite(value) for name, value in asdict(each).items()} for each in points]
    print_json({"plan": asdict(plan), "points": shown, "knee": place, "page": page and str(page)})


def tell_tuned(tuned: Tuned, objective: Objective, path: Path, *, quiet: bool) -> None:
    """Say what tuning came to."""
    if not quiet:
        console.print(tuned_table(tuned))
        console.print(
            Text(
                "Nothing is clearly better than the default, so that was written."
                if tuned.best == tuned.default
                else f"The best keeps {objective} at {tuned.gain} the default's rate, both measured in turns.",
                style="green",
            )
        )
        console.print(f"Written: {path}; serve it with --config-name {path.stem}", soft_wrap=True)
    found = {name: _finite(value) for name, value in asdict(tuned).items()}
    found["worth"] = {name: _finite(value) for name, value in tuned.worth.items()}
    print_json({"objective": str(objective), **found, "configuration": str(path)})


def tell_comparison(comparison: Comparison, *, quiet: bool) -> None:
    """Say how two runs compare."""
    if not quiet:
        console.print(comparison_table(comparison))
    rows = [{name: _finite(value) for name, value in asdict(row).items()} for row in comparison.rows]
    print_json({**asdict(comparison), "rows": rows, "regressed": comparison.regressed})


def print_json(content: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps(content), flush=True)


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
