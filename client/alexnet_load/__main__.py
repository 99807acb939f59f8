"""``alexnet-load``: load tests from the terminal. Only ``tell`` and ``live`` print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alexnet_client.errors import BadInput
from alexnet_load import options as of
from alexnet_load.searches import slo, sweep, tune
from alexnet_load.tell import mistakes_told, tell_comparison, tell_run, where

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Load tests that tell the truth, on Triton.")
for search in (slo, sweep, tune):
    app.command()(search)


@app.command()
@of.with_plan()
def run(
    make: of.MakePlan,
    rate: Annotated[float, typer.Option("--rate", "-r", help="requests a second, at random times (Poisson)")] = 0.0,
    arrivals: Annotated[str, typer.Option(help=of.ARRIVALS)] = "",
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=0, help="closed loop: so many callers")] = 0,
    duration: of.Duration = 60.0,
    count: Annotated[int, typer.Option(min=0, help="end after so many requests; 0: by time alone")] = 0,
    objective: Annotated[
        str, typer.Option("--slo", help="exit 1 if this is not kept, such as p99=50ms,errors=0.1%")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="directory for run.jsonl.gz and index.html; none: keep nothing"),
    ] = None,
    warm_up: of.WarmUp = 2.0,
    metrics: of.Metrics = "",
    as_json: of.Json = False,
) -> None:
    """Send requests on schedule, and say what clients and servers made of them."""
    from alexnet_load.conduct import conduct
    from alexnet_load.live import live
    from alexnet_load.slo import parse_objective

    with mistakes_told():
        if sum(map(bool, (rate, arrivals, concurrency))) > 1:
            raise BadInput("--rate, --arrivals and --concurrency exclude each other; name one")
        wanted = parse_objective(objective) if objective else None
        plan = make(
            arrivals=arrivals or (f"closed:{concurrency}" if concurrency else f"poisson:{rate or of.RATE:g}"),
            duration_s=duration,
            warm_up_s=warm_up,
            max_count=count,
        )
        with live(where(as_json), seconds=duration, title=plan.arrivals) as show:
            made = conduct(plan, path=output and output / "run.jsonl.gz", metrics=metrics, on_progress=show)
        kept = tell_run(made, page=output and output / "index.html", objective=wanted, quiet=as_json)
    raise typer.Exit(0 if kept else 1)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="a run's file, run.jsonl.gz")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file for the page; none: the tables only")
    ] = None,
    as_json: of.Json = False,
) -> None:
    """Tell of a run again, from its file."""
    from alexnet_load.results import read_run

    with mistakes_told():
        tell_run(read_run(file), page=output, objective=None, quiet=as_json)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="the run's file to compare with")],
    after: Annotated[Path, typer.Argument(help="the run's file to judge")],
    share: Annotated[float, typer.Option(help="how much worse a figure may be, 0.05 for 5 %")] = 0.05,
    errors: Annotated[float, typer.Option(help="how many more requests may fail, 0.01 for 1 % of all")] = 0.01,
    confidence: Annotated[float, typer.Option(help="of the intervals")] = 0.95,
    as_json: of.Json = False,
) -> None:
    """Put two runs side by side; exits 1 if the second is worse by more than a share, beyond chance."""
    from alexnet_load.compare import compare as compared
    from alexnet_load.results import read_run

    with mistakes_told():
        comparison = compared(read_run(before), read_run(after), share=share, errors=errors, confidence=confidence)
        tell_comparison(comparison, quiet=as_json)
    raise typer.Exit(1 if comparison.regressed else 0)


if __name__ == "__main__":
    app()
