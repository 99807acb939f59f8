"""Single runs at a given rate, for the SLO search and for the sweep."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from alexnet_load.run import Plan
from alexnet_load.runner import OnProgress, run_plan
from alexnet_load.slo import Slo, Trial
from alexnet_load.summary import Summary, percentile_ms, summarize
from alexnet_load.sweep import CurvePoint


class Trials:
    """Runs a plan at any rate, and reports the percentile of the SLO.

    Each trial uses another seed, because equal arrivals give no new information.
    """

    def __init__(self, plan: Plan, slo: Slo, *, on_progress: OnProgress) -> None:
        self._plan, self._slo, self._on_progress = plan, slo, on_progress
        self._seeds = count(plan.seed)

    def __call__(self, rate: float) -> Trial:
        """Run a trial at a rate, requests per second.

        Raises:
            ClientError: see ``run_plan``.
        """
        summary = _run(replace(self._plan, seed=next(self._seeds)), rate, self._on_progress)
        return Trial(
            rate=rate,
            value_ms=percentile_ms(summary.response, self._slo.percentile),
            errors=summary.error_share,
            requests=summary.requests,
            achieved=summary.ok_rate,
            generator_limited=summary.generator_limited,
            steady=not summary.unsteady,
        )


def measure_point(plan: Plan, rate: float, *, on_progress: OnProgress) -> CurvePoint:
    """Measure one point of the throughput-latency curve.

    Raises:
        ClientError: see ``run_plan``.
    """
    summary = _run(plan, rate, on_progress)
    return CurvePoint(
        rate=rate,
        image_rate=summary.image_rate,
        p50_ms=percentile_ms(summary.response, 50),
        p99_ms=percentile_ms(summary.response, 99),
        errors=summary.error_share,
    )


def _run(plan: Plan, rate: float, on_progress: OnProgress) -> Summary:
    """Results of a run with Poisson arrivals; Ctrl-C ends the whole command, because an interrupted run is no valid trial."""
    run = run_plan(replace(plan, arrivals=f"poisson:{rate}"), on_progress=on_progress)
    if run.client is not None and run.client.interrupted:
        raise KeyboardInterrupt
    return summarize(run)
