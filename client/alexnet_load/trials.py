"""Runs as trials: at a rate, for the SLO search and for the sweep of the throughput-latency curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

from alexnet_load.arrivals import parse_arrivals, with_rate
from alexnet_load.conduct import Progress, conduct
from alexnet_load.knee import CurvePoint
from alexnet_load.run import Plan
from alexnet_load.slo import Objective, Trial
from alexnet_load.summary import Summary, percentile_ms, summarize

OnProgress = Callable[[Progress], None]


def at_rate(plan: Plan, rate: float) -> Plan:
    """The same plan with another mean rate of arrivals, requests a second."""
    return replace(plan, arrivals=str(with_rate(parse_arrivals(plan.arrivals), rate)))


class Trials:
    """Runs of a plan at any rate, judged; each has dice of its own, or the same arrivals would be tried again and again.

    Args:
        plan: what a trial is.
        objective: what its percentile is.
        on_progress: told how a trial goes.
    """

    def __init__(self, plan: Plan, objective: Objective, *, on_progress: OnProgress) -> None:
        self._plan, self._objective, self._on_progress = plan, objective, on_progress
        self._seeds = count(plan.seed)

    def __call__(self, rate: float) -> Trial:
        """A run at a rate, requests a second.

        Raises:
            ClientError: as ``conduct``.
        """
        plan = replace(at_rate(self._plan, rate), seed=next(self._seeds))
        summary = _summary(plan, self._on_progress)
        return Trial(
            rate=rate,
            value_ms=percentile_ms(summary.response, self._objective.percentile),
            errors=sum(summary.errors.values()) / max(1, summary.requests),
            requests=summary.requests,
            achieved=summary.ok_rate,
            sender_limited=summary.sender_limited,
            steady=not summary.unsteady,
        )


def point(plan: Plan, rate: float, *, on_progress: OnProgress) -> CurvePoint:
    """One point of the throughput-latency curve.

    Raises:
        ClientError: as ``conduct``.
    """
    summary = _summary(at_rate(plan, rate), on_progress)
    return CurvePoint(
        rate=rate,
        image_rate=summary.image_rate,
        p50_ms=percentile_ms(summary.response, 50),
        p99_ms=percentile_ms(summary.response, 99),
        errors=sum(summary.errors.values()) / max(1, summary.requests),
    )


def _summary(plan: Plan, on_progress: OnProgress) -> Summary:
    """The figures of a whole run; Ctrl-C ends more than the run: what was cut off is no trial."""
    run = conduct(plan, on_progress=on_progress)
    if run.client is not None and run.client.interrupted:
        raise KeyboardInterrupt
    return summarize(run)
