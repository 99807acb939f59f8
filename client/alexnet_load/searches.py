"""The commands that make many runs: ``slo``, ``sweep`` and ``tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alexnet_client.errors import BadInput
from alexnet_load import options as of
from alexnet_load.atomic import check_writable
from alexnet_load.tell import mistakes_told, tell_curve, tell_found, tell_tuned, where


@of.with_plan()
def slo(
    make: of.MakePlan,
    objective: Annotated[str, typer.Argument(help="what to keep, such as p99=50ms,errors=0.1%")],
    start: Annotated[float, typer.Option(help="rate to begin with, requests a second")] = 20.0,
    most: Annotated[float, typer.Option(help="rate never to exceed, requests a second")] = 100_000.0,
    precision: Annotated[
        float, typer.Option(help="how near the highest passed and lowest failed rate are to be")
    ] = 0.05,
    repeats: Annotated[int, typer.Option(min=1, help="trials that decide about a rate")] = 3,
    duration: of.Duration = 10.0,
    arrivals: Annotated[str, typer.Option(help="constant or poisson")] = "poisson",
    warm_up: of.WarmUp = 1.0,
    as_json: of.Json = False,
) -> None:
    """Search the highest rate of requests at which an objective is kept."""
    from alexnet_load.live import live
    from alexnet_load.slo import parse_objective, search
    from alexnet_load.trials import Trials

    with mistakes_told():
        wanted = parse_objective(objective)
        plan = make(
            arrivals=f"{arrivals}:{start:g}",
            duration_s=duration,
            warm_up_s=warm_up,
        )
        with live(where(as_json), seconds=duration, title=f"searching {objective}") as show:
            found = search(
                Trials(plan, wanted, on_progress=show),
                wanted,
                start_rate=start,
                most_rate=most,
                precision=precision,
                repeats=repeats,
            )
        tell_found(found, wanted, quiet=as_json)
    raise typer.Exit(0 if found.rate else 1)


@of.with_plan()
def sweep(
    make: of.MakePlan,
    low: Annotated[float, typer.Option("--from", help="lowest rate, requests a second")] = 20.0,
    high: Annotated[float, typer.Option("--to", help="highest rate, requests a second")] = 320.0,
    steps: Annotated[int, typer.Option(min=2, max=100, help="rates between and with these")] = 9,
    slo: Annotated[str, typer.Option(help="an objective of the p99 to draw into the curve, such as p99=50ms")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="file for the page, such as sweep.html")] = None,
    duration: of.Duration = 10.0,
    arrivals: Annotated[str, typer.Option(help="constant or poisson")] = "poisson",
    warm_up: of.WarmUp = 1.0,
    as_json: of.Json = False,
) -> None:
    """Draw throughput against latency over a range of rates, and find the knee."""
    from alexnet_load.knee import CurvePoint, sweep_rates
    from alexnet_load.live import live
    from alexnet_load.slo import parse_objective
    from alexnet_load.trials import point

    with mistakes_told():
        objective = parse_objective(slo) if slo else None
        if objective is not None and objective.percentile != 99:
            raise BadInput(f"{slo}: the curve shows p99, so its objective is one of p99")
        plan = make(
            arrivals=f"{arrivals}:{low:g}",
            duration_s=duration,
            warm_up_s=warm_up,
        )
        if output is not None:
            check_writable(output)  # before all the runs
        points: list[CurvePoint] = []
        for rate in sweep_rates(low, high, steps):
            with live(where(as_json), seconds=duration, title=f"{rate:.0f}/s, {len(points) + 1} of {steps}") as show:
                points.append(point(plan, rate, on_progress=show))
        tell_curve(points, plan, objective=objective, page=output, quiet=as_json)


@of.with_plan(without=("target", "batch", "delay_ms", "no_batching", "tls", "tls_name"))
def tune(
    make: of.MakePlan,
    slo: Annotated[str, typer.Option(help="what to keep, such as p99=50ms,errors=0.1%")],
    repository: Annotated[
        Path,
        typer.Option("--repository", help="the Triton model repository to start from; it is served on other ports"),
    ] = Path("model_repository"),
    name: Annotated[str, typer.Option(help="write the best setting as configs/NAME.pbtxt")] = "tuned",
    candidates: Annotated[int, typer.Option(min=2, max=200, help="settings to try at first")] = 12,
    start: Annotated[float, typer.Option(help="rate to begin with, requests a second")] = 20.0,
    duration: of.Duration = 4.0,
    arrivals: Annotated[str, typer.Option(help="constant or poisson")] = "poisson",
    warm_up: of.WarmUp = 0.5,
    as_json: of.Json = False,
) -> None:
    """Try the settings that matter on servers of their own, and write down the best of them."""
    from alexnet_load.live import live
    from alexnet_load.slo import parse_objective
    from alexnet_load.tune import configuration_path, tune_repository, write_configuration

    with mistakes_told():
        objective = parse_objective(slo)
        plan = make(
            arrivals=f"{arrivals}:{start:g}",
            duration_s=duration,
            warm_up_s=warm_up,
        )
        configuration_path(repository, plan.model, name)  # what cannot be written is said before all the trials
        shown = where(as_json)
        with live(shown, seconds=duration, title="tuning") as show:
            tuned = tune_repository(
                repository,
                plan,
                objective,
                count=candidates,
                start_rate=start,
                on_step=lambda text: shown.print(text, soft_wrap=True),
                on_progress=show,
            )
        path = write_configuration(repository, plan.model, tuned, name, objective)
        tell_tuned(tuned, objective, path, quiet=as_json)
