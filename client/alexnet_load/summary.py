"""Results of a run: percentiles, rates, time windows, and whether the results are reliable.

Uses only the records of a run, so that a run can be evaluated again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from alexnet_load.run import OK, Records, Run
from alexnet_load.steady_state import find_steady_state

MIN_US, MAX_US, DIGITS = 1, 3_600_000_000, 3
MAX_WINDOWS, MIN_WINDOW_S = 60, 0.25
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99)
MIN_REQUESTS_ABOVE = 10
"""A percentile is reported only if this many requests are above it: the p99.99 of 500 requests would be their maximum."""
LAG_MS, LAG_SHARE = 5.0, 0.1
"""The load generator is the bottleneck if the p99 of its lag exceeds both this time and this share of the p99 response time."""
BUSY = 0.95
"""A sender whose CPU utilisation exceeds this share is the bottleneck."""
OVERLOAD_SHARE = 0.05
"""Share of the planned requests that may be neither answered nor failed at the end; more means that a queue grew."""


@dataclass(frozen=True)
class Window:
    """One time window of a run; a request belongs to the window of its planned time.

    Attributes:
        start_s: start, seconds since the start of the run.
        seconds: length.
        sent, failed: requests planned in the window, and those of them that failed.
        ok: answers that arrived in the window.
        images: images in these answers.
        p50_ms, p99_ms: response time of the answered requests, milliseconds; None without answers.
    """

    start_s: float
    seconds: float
    sent: int
    ok: int
    failed: int
    images: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Summary:
    """Results of the measured period, which excludes the warm-up.

    Attributes:
        seconds: length of the measured period.
        requests, ok, images: requests, answered requests, and images in these.
        errors: failed requests by outcome.
        planned_rate, sent_rate, ok_rate, image_rate: per second: requests planned, requests sent, answers received and images
            in these answers within the measured period; 0 if it has no length.
        response: HdrHistogram of the response times of answered requests, from the planned time, microseconds.
        service: the same from the time when the request left the client.
        lag: HdrHistogram of the load generator lag of all requests, microseconds.
        windows: time windows, including those of the warm-up.
        steady_from_s: start of the steady state, seconds since the start of the run; None if there is none.
        unsteady: why there is no steady state; empty if there is one.
        generator_limited: why the load generator was the bottleneck; empty if it was not.
    """

    seconds: float
    requests: int
    ok: int
    images: int
    errors: dict[str, int]
    planned_rate: float
    sent_rate: float
    ok_rate: float
    image_rate: float
    response: Any
    service: Any
    lag: Any
    windows: tuple[Window, ...]
    steady_from_s: float | None
    unsteady: str
    generator_limited: str

    @property
    def error_share(self) -> float:
        """Failed requests as a share of all requests."""
        return sum(self.errors.values()) / max(1, self.requests)


def summarize(run: Run) -> Summary:
    """Compute the results of a run.

    The measured period lasts from the end of the warm-up to the end of sending. A request belongs to it if its planned time
    does, independent of the time of its answer; rates count what happened within the period.
    """
    records, start_s, end_s = run.records, run.plan.warm_up_s, sending_ended_s(run)
    measured = (records.planned_s >= start_s) & (records.planned_s <= end_s)
    answered = records.outcome == 0
    ok = measured & answered
    response, service = (histogram((records.ended_s - since)[ok]) for since in (records.planned_s, records.sent_s))
    lag = histogram(records.lag_s[measured])
    windows = _windows(records, end_s)
    after_warm_up = [each for each in windows if each.start_s >= start_s]
    steady = find_steady_state([each.start_s for each in after_warm_up], [each.p50_ms for each in after_warm_up])
    seconds = max(0.0, end_s - start_s)

    def rate(times_s: npt.NDArray[np.float64], counts: npt.NDArray[Any]) -> float:
        # the end is excluded, so that n requests at equal gaps count as n gaps
        return float(counts[(times_s >= start_s) & (times_s < end_s)].sum()) / seconds if seconds else 0.0

    return Summary(
        seconds=seconds,
        requests=int(measured.sum()),
        ok=int(ok.sum()),
        images=int(records.images[ok].sum()),
        errors=_errors(records, measured),
        planned_rate=rate(records.planned_s, np.ones(len(records))),
        sent_rate=rate(records.sent_s, np.ones(len(records))),
        ok_rate=rate(records.ended_s, answered),
        image_rate=rate(records.ended_s, records.images * answered),
        response=response,
        service=service,
        lag=lag,
        windows=tuple(windows),
        steady_from_s=steady.from_s,
        unsteady=steady.reason,
        generator_limited=_generator_limited(run, lag, response),
    )


def histogram(seconds: npt.NDArray[np.float64]) -> Any:
    """Return an HdrHistogram of durations in microseconds: from 1 us to one hour with three significant digits."""
    found = HdrHistogram(MIN_US, MAX_US, DIGITS)
    values, counts = np.unique(np.clip(np.rint(seconds * 1e6), MIN_US, MAX_US).astype(np.int64), return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        found.record_value(value, count)
    return found


def percentile_ms(found: Any, percentile: float) -> float:
    """Return a percentile of an HdrHistogram, milliseconds; infinite if the histogram is empty."""
    return float(found.get_value_at_percentile(percentile)) / 1000 if found.total_count else float("inf")


def percentiles(found: Any) -> dict[str, float]:
    """Return percentiles by name, milliseconds: p50, those with ``MIN_REQUESTS_ABOVE`` requests above them, and the maximum."""
    named = {
        f"p{each:g}": percentile_ms(found, each)
        for each in PERCENTILES
        if round(found.total_count * (100 - each), 6) >= 100 * MIN_REQUESTS_ABOVE or each == PERCENTILES[0]
    }
    return {**named, "max": found.get_max_value() / 1000} if found.total_count else {}


def warnings(run: Run, summary: Summary) -> list[str]:
    """Return the sentences that a report shows before all results: reasons why the results may mislead."""
    texts = []
    if summary.generator_limited:
        texts.append(
            f"The load generator was the bottleneck, so the results do not describe the server: {summary.generator_limited}."
        )
    ended = summary.ok_rate * summary.seconds + sum(summary.errors.values())
    if not run.plan.closed_loop and ended < (1 - OVERLOAD_SHARE) * summary.requests:
        texts.append(
            f"Overload: {summary.planned_rate:.1f} requests/s were sent, {summary.ok_rate:.1f} were answered. The response "
            "times depend on the length of the run, not only on the server."
        )
    if summary.unsteady:
        texts.append(f"No steady state: {summary.unsteady}.")
    if run.client is None:
        texts.append("The run file is incomplete: the statistics of client and server are missing.")
    elif run.client.interrupted:
        texts.append("The run was interrupted.")
    return texts


def as_json(summary: Summary, run: Run) -> dict[str, Any]:
    """Return the run as one JSON object; latencies in milliseconds."""
    rates = ("planned_rate", "sent_rate", "ok_rate", "image_rate")
    latencies = {
        f"{name}_ms": {each: round(value, 3) for each, value in percentiles(getattr(summary, name)).items()}
        for name in ("response", "service", "lag")
    }
    return {
        "plan": asdict(run.plan),
        "seconds": round(summary.seconds, 3),
        **{name: getattr(summary, name) for name in ("requests", "ok", "images", "errors")},
        **{name: round(getattr(summary, name), 2) for name in rates},
        **latencies,
        **{name: getattr(summary, name) for name in ("steady_from_s", "unsteady", "generator_limited")},
        "client": None if run.client is None else asdict(run.client),
        "server": None if run.server is None else asdict(run.server),
        **{name: getattr(run, name) for name in ("server_missing", "machine", "started", "version")},
    }


def sending_ended_s(run: Run) -> float:
    """Return the end of sending: the planned one, or the last request if the run was interrupted or its arrivals ended."""
    plan, client = run.plan, run.client
    last_s = float(run.records.planned_s[-1]) if len(run.records) else 0.0
    ended_early = client is None or client.interrupted or plan.arrivals.startswith("trace:")
    return min(plan.duration_s, last_s) if ended_early else plan.duration_s


def _errors(records: Records, measured: npt.NDArray[np.bool_]) -> dict[str, int]:
    counts = np.bincount(records.outcome[measured], minlength=len(records.outcomes)).tolist()
    return {name: count for name, count in zip(records.outcomes, counts, strict=True) if name != OK and count}


def _windows(records: Records, end_s: float) -> list[Window]:
    """Windows of equal length from the start to the end of sending."""
    count = min(MAX_WINDOWS, max(1, int(end_s / MIN_WINDOW_S)))
    seconds = max(MIN_WINDOW_S, end_s / count)
    planned = np.minimum(records.planned_s / seconds, count - 1).astype(int)  # the very end belongs to the last window
    ended = (records.ended_s / seconds).astype(int)
    ok = records.outcome == 0
    windows = []
    for place in range(count):
        sent, arrived = planned == place, (ended == place) & ok
        response_ms = 1000 * (records.ended_s - records.planned_s)[sent & ok]
        p50_ms, p99_ms = map(float, np.percentile(response_ms, (50, 99))) if len(response_ms) else (None, None)
        windows.append(
            Window(
                start_s=place * seconds,
                seconds=seconds,
                sent=int(sent.sum()),
                ok=int(arrived.sum()),
                failed=int((sent & ~ok).sum()),
                images=int(records.images[arrived].sum()),
                p50_ms=p50_ms,
                p99_ms=p99_ms,
            )
        )
    return windows


def _generator_limited(run: Run, lag: Any, response: Any) -> str:
    """Why the load generator was the bottleneck; in a closed loop requests have no lag, so only CPU utilisation shows it."""
    remedy = f"use more senders (--senders {run.plan.senders + 1}) or a machine with more CPUs"
    lag_ms = percentile_ms(lag, 99) if lag.total_count else 0.0
    response_ms = percentile_ms(response, 99) if response.total_count else 0.0
    if not run.plan.closed_loop and lag_ms > max(LAG_MS, LAG_SHARE * response_ms):
        return (
            f"p99 of the load generator lag is {lag_ms:.1f} ms, p99 of the response time {response_ms:.1f} ms; {remedy}"
        )
    if run.client is not None and run.client.cpu_s and run.client.wall_s > 1:
        utilisation = max(run.client.cpu_s) / run.client.wall_s
        if utilisation > BUSY:
            return f"the CPU utilisation of a sender was {utilisation:.0%}; {remedy}"
    return ""
