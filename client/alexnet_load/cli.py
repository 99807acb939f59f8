"""The commands of ``alexnet-load``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from alexnet_client.errors import BadInput, ClientError
from alexnet_client.files import check_writable
from alexnet_client.terminal import EXIT_CODES, FAILED, errors_reported
from alexnet_load import options as of
from alexnet_load import terminal_report
from alexnet_load.slo import parse_slo

DEFAULT_RATE = 50.0
"""Requests per second without --rate: below the capacity of all machines on which this project was tested."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    epilog=EXIT_CODES,
    help="Load tests for image classifiers on Triton. Latency is measured from the planned send time of each request.",
)


@contextmanager
def _errors_reported() -> Iterator[None]:
    # SIGTERM must end the processes of this command, too, so it becomes an exception.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with errors_reported("alexnet-load", ClientError):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command(epilog=EXIT_CODES)
@of.with_plan()
def run(
    make: of.MakePlan,
    rate: Annotated[
        float | None,
        typer.Option("--rate", "-r", help=f"requests per second, Poisson arrivals [default: {DEFAULT_RATE:g}]"),
    ] = None,
    arrivals: of.Arrivals = "",
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, help="closed loop with this number of callers")
    ] = None,
    duration: of.Duration = 60.0,
    slo: Annotated[str, typer.Option(help="exit 1 if this SLO is violated, such as p99=50ms,errors=0.1%")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="directory for the run file and the HTML page")
    ] = None,
    warm_up: of.WarmUp = 2.0,
    metrics: of.Metrics = "",
    as_json: of.Json = False,
) -> None:
    """Run a load test and report latency, throughput, errors and the bottleneck."""
    from alexnet_load.runner import run_plan

    with _errors_reported():
        if sum((rate is not None, bool(arrivals), concurrency is not None)) > 1:
            raise BadInput("--rate, --arrivals and --concurrency exclude each other")
        objective = parse_slo(slo) if slo else None
        plan = make(
            arrivals=arrivals
            or (f"closed:{concurrency}" if concurrency else f"poisson:{DEFAULT_RATE if rate is None else rate:g}"),
            duration_s=duration,
            warm_up_s=warm_up,
        )
        with terminal_report.progress(plan.arrivals, seconds=duration, quiet=as_json) as on_progress:
            done = run_plan(plan, path=output and output / "run.jsonl.gz", metrics=metrics, on_progress=on_progress)
        met = terminal_report.report_run(done, page=output and output / "index.html", slo=objective, quiet=as_json)
    raise typer.Exit(0 if met else FAILED)


@app.command(epilog=EXIT_CODES)
def report(
    file: Annotated[Path, typer.Argument(help="run file, run.jsonl.gz")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file for the HTML page, such as run.html")
    ] = None,
    as_json: of.Json = False,
) -> None:
    """Report the results of an earlier run."""
    from alexnet_load.run_file import read_run

    with _errors_reported():
        terminal_report.report_run(read_run(file), page=output, slo=None, quiet=as_json)


@app.command(epilog=EXIT_CODES)
def compare(
    before: Annotated[Path, typer.Argument(help="file of the reference run")],
    after: Annotated[Path, typer.Argument(help="file of the run to evaluate")],
    max_change: Annotated[float, typer.Option(help="limit for latencies and rates, 0.05 for 5 % worse")] = 0.05,
    max_errors: Annotated[float, typer.Option(help="limit for additional failed requests, 0.01 for 1 % of all")] = 0.01,
    as_json: of.Json = False,
) -> None:
    """Compare two runs; exit 1 if a metric of the second run is worse by more than its limit, with 95 % confidence."""
    from alexnet_load.compare import compare_runs
    from alexnet_load.run_file import read_run

    with _errors_reported():
        comparison = compare_runs(read_run(before), read_run(after), max_change=max_change, max_errors=max_errors)
        terminal_report.report_comparison(comparison, quiet=as_json)
    raise typer.Exit(FAILED if comparison.regressed else 0)


@app.command(epilog=EXIT_CODES)
@of.with_plan()
def slo(
    make: of.MakePlan,
    objective: Annotated[str, typer.Argument(metavar="SLO", help="the SLO, such as p99=50ms,errors=0.1%")],
    start_rate: Annotated[float, typer.Option(help="rate of the first trial, requests per second")] = 20.0,
    max_rate: Annotated[float, typer.Option(help="highest rate to try, requests per second")] = 100_000.0,
    repeats: Annotated[int, typer.Option(min=1, help="trials at each rate; the majority decides")] = 3,
    duration: of.Duration = 10.0,
    warm_up: of.WarmUp = 1.0,
    as_json: of.Json = False,
) -> None:
    """Search for the highest rate that meets an SLO; exit 1 if no rate does."""
    from alexnet_load.slo_search import search
    from alexnet_load.trials import Trials

    with _errors_reported():
        limits = parse_slo(objective)
        plan = make(duration_s=duration, warm_up_s=warm_up)
        with terminal_report.progress(f"searching {objective}", seconds=duration, quiet=as_json) as on_progress:
            result = search(
                Trials(plan, limits, on_progress=on_progress),
                limits,
                start_rate=start_rate,
                max_rate=max_rate,
                repeats=repeats,
            )
        terminal_report.report_search(result, limits, quiet=as_json)
    raise typer.Exit(0 if result.rate else FAILED)


@app.command(epilog=EXIT_CODES)
@of.with_plan()
def sweep(
    make: of.MakePlan,
    low: Annotated[float, typer.Option("--from", help="lowest rate, requests per second")] = 20.0,
    high: Annotated[float, typer.Option("--to", help="highest rate, requests per second")] = 320.0,
    steps: Annotated[int, typer.Option(min=2, max=100, help="number of rates")] = 9,
    slo: Annotated[str, typer.Option(help="SLO for the p99 to show in the curve, such as p99=50ms")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file for the HTML page, such as sweep.html")
    ] = None,
    duration: of.Duration = 10.0,
    warm_up: of.WarmUp = 1.0,
    as_json: of.Json = False,
) -> None:
    """Measure latency against throughput over a range of rates, and find the knee of the curve."""
    from alexnet_load.sweep import CurvePoint, sweep_rates
    from alexnet_load.trials import measure_point

    with _errors_reported():
        limits = parse_slo(slo) if slo else None
        if limits is not None and limits.percentile != 99:
            raise BadInput(f"{slo}: the curve shows the p99, so its SLO must limit the p99")
        rates = sweep_rates(low, high, steps)
        plan = make(arrivals=f"poisson:{low}", duration_s=duration, warm_up_s=warm_up)
        if output is not None:
            check_writable(output)  # before all the runs
        points: list[CurvePoint] = []
        for rate in rates:
            title = f"{rate:.0f} requests/s, {len(points) + 1} of {steps}"
            with terminal_report.progress(title, seconds=duration, quiet=as_json) as on_progress:
                points.append(measure_point(plan, rate, on_progress=on_progress))
        terminal_report.report_sweep(points, plan, slo=limits, page=output, quiet=as_json)


@app.command(epilog=EXIT_CODES)
@of.with_plan(without=("target", "tls", "tls_name"))
def tune(
    make: of.MakePlan,
    slo: Annotated[str, typer.Option(help="the SLO, such as p99=50ms,errors=0.1%")],
    repository: Annotated[
        Path, typer.Option("--repository", help="Triton model repository; copies of it are served on free ports")
    ] = Path("model_repository"),
    name: Annotated[str, typer.Option(help="name of the configuration to write: configs/NAME.pbtxt")] = "tuned",
    duration: of.Duration = 4.0,
    warm_up: of.WarmUp = 0.5,
    as_json: of.Json = False,
) -> None:
    """Tune the Triton configuration of a model for an SLO; exit 1 if no setting meets it.

    Tries instances, threads, queue delays and preferred batch sizes, and writes the best setting as a named configuration.
    """
    from alexnet_load.tune import configuration_path, tune_repository, write_configuration

    with _errors_reported():
        limits = parse_slo(slo)
        plan = make(duration_s=duration, warm_up_s=warm_up)
        configuration_path(repository, plan.model, name)  # reports errors before all the trials
        with terminal_report.progress("tuning", seconds=duration, quiet=as_json) as on_progress:
            tuned = tune_repository(
                repository,
                plan,
                limits,
                on_step=lambda text: terminal_report.status(text, quiet=as_json),
                on_progress=on_progress,
            )
        path = write_configuration(repository, plan.model, tuned, name, limits) if tuned.slo_met else None
        terminal_report.report_tuning(tuned, limits, path, quiet=as_json)
    raise typer.Exit(0 if tuned.slo_met else FAILED)
