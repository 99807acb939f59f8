"""A run in figures: percentiles, rates, slices of time, and whether the figures can be trusted.

Pure: it reads records and nothing else, so that a run can be told of again without being made again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from alexnet_load.run import OK, Records, Run
from alexnet_load.steady import judge_steadiness

LEAST_US, MOST_US, DIGITS = 1, 3_600_000_000, 3
WINDOWS, SHORTEST_S = 60, 0.25
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99)
BEYOND = 10
"""A percentile counts only if so many requests lie beyond it: the p99.99 of 500 requests is their maximum, no percentile."""
LAG_MS, LAG_SHARE = 5.0, 0.1
"""The sender is too late if its p99 of lag is more than this, and more than this share of the p99 of the response."""
BUSY = 0.95
"""A sender whose process works more than this share of the time is its own limit."""


@dataclass(frozen=True)
class Window:
    """A slice of the run's time; requests belong to the slice of their planned time.

    Attributes:
        start_s: its begin, seconds since the run began.
        seconds: its length.
        sent, failed: requests planned in it, and those of them that failed.
        ok: answers that came in it.
        images: in these answers: throughput.
        p50_ms, p99_ms: response time of answered requests, milliseconds; None if there is none.
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
    """The measured part of a run, warm-up excluded.

    Attributes:
        seconds: its length.
        requests, ok, images: requests, those answered, and images in these.
        errors: requests by outcome that is not ok.
        planned_rate, sent_rate, ok_rate, image_rate: a second: requests planned within the measured part, requests sent
            within it, answers that came within it, and images in these; 0 if the part has no length.
        response: HdrHistogram of answered requests from the planned time, microseconds: what a user would have seen.
        service: the same from the time when they left the client for a server.
        lag: of all requests, how late they were handed to the client, microseconds.
        windows: slices of time, the warm-up's too.
        steady_from_s: when the run became steady, seconds since it began; None if it never did.
        unsteady: why it is not steady, in words; empty if it is.
        sender_limited: why the sender and not the server was the limit, in words; empty if it was not.
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
    sender_limited: str


def summarize(run: Run) -> Summary:
    """The figures of a run; latencies are those of answered requests, and come from HdrHistogram alone.

    The measured part begins with the end of the warm-up and ends with the sending. A request belongs to it if its planned
    time does, whenever its answer came; a rate counts what happened within it.
    """
    records, begin_s, end_s = run.records, run.plan.warm_up_s, sending_ended_s(run)
    inside = (records.planned_s >= begin_s) & (records.planned_s <= end_s)
    answered = records.outcome == 0
    ok = inside & answered
    response, service = (histogram((records.ended_s - since)[ok]) for since in (records.planned_s, records.sent_s))
    lag = histogram(records.late_s[inside])
    windows = _windows(records, end_s)
    measured = [each for each in windows if each.start_s >= begin_s]
    steadiness = judge_steadiness([each.start_s for each in measured], [each.p50_ms for each in measured])
    seconds = max(0.0, end_s - begin_s)

    def rate(times_s: npt.NDArray[np.float64], counts: npt.NDArray[Any]) -> float:
        # the end itself is left out: so many requests as there are gaps, and not one more
        return float(counts[(times_s >= begin_s) & (times_s < end_s)].sum()) / seconds if seconds else 0.0

    return Summary(
        seconds=seconds,
        requests=int(inside.sum()),
        ok=int(ok.sum()),
        images=int(records.images[ok].sum()),
        errors=_errors(records, inside),
        planned_rate=rate(records.planned_s, np.ones(len(records))),
        sent_rate=rate(records.sent_s, np.ones(len(records))),
        ok_rate=rate(records.ended_s, answered),
        image_rate=rate(records.ended_s, records.images * answered),
        response=response,
        service=service,
        lag=lag,
        windows=tuple(windows),
        steady_from_s=steadiness.steady_from_s,
        unsteady=steadiness.reason,
        sender_limited=_sender_limited(run, lag, response),
    )


def histogram(seconds: npt.NDArray[np.float64]) -> Any:
    """An HdrHistogram of durations, in microseconds: from 1 us to an hour with three significant digits."""
    found = HdrHistogram(LEAST_US, MOST_US, DIGITS)
    values, counts = np.unique(np.clip(np.rint(seconds * 1e6), LEAST_US, MOST_US).astype(np.int64), return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        found.record_value(value, count)
    return found


def percentile_ms(found: Any, percentile: float) -> float:
    """A percentile of an HdrHistogram, milliseconds; infinite if nothing was answered: no latency at all is the worst."""
    return float(found.get_value_at_percentile(percentile)) / 1000 if found.total_count else float("inf")


def percentiles(found: Any) -> dict[str, float]:
    """Milliseconds by name: p50, those of the others that have ``BEYOND`` requests beyond them, and the maximum."""
    named = {
        f"p{each:g}": percentile_ms(found, each)
        for each in PERCENTILES
        if round(found.total_count * (100 - each), 6) >= 100 * BEYOND or each == PERCENTILES[0]
    }
    return {**named, "max": found.get_max_value() / 1000} if found.total_count else {}


def as_json(summary: Summary, run: Run) -> dict[str, Any]:
    """The run as one record for machines; latencies in milliseconds."""
    figures = {
        "seconds": round(summary.seconds, 3),
        "requests": summary.requests,
        "ok": summary.ok,
        "images": summary.images,
        "errors": summary.errors,
        **{name: round(getattr(summary, name), 2) for name in ("planned_rate", "sent_rate", "ok_rate", "image_rate")},
    }
    latencies = {
        f"{name}_ms": {each: round(value, 3) for each, value in percentiles(getattr(summary, name)).items()}
        for name in ("response", "service", "lag")
    }
    return {
        "plan": asdict(run.plan),
        **figures,
        **latencies,
        "steady_from_s": summary.steady_from_s,
        "unsteady": summary.unsteady,
        "sender_limited": summary.sender_limited,
        "client": None if run.client is None else asdict(run.client),
        "server": None if run.server is None else asdict(run.server),
        "server_missing": run.server_missing,
        "machine": run.machine,
        "started": run.started,
        "version": run.version,
    }


def sending_ended_s(run: Run) -> float:
    """When the sending ended: as planned, or with the last request if the run was broken off, or its count or trace ended."""
    plan, client = run.plan, run.client
    last_s = float(run.records.planned_s[-1]) if len(run.records) else 0.0
    counted = plan.max_count and len(run.records) >= plan.max_count
    cut = client is None or client.interrupted or counted or plan.arrivals.startswith("trace:")
    return min(plan.duration_s, last_s) if cut else plan.duration_s


def _errors(records: Records, inside: npt.NDArray[np.bool_]) -> dict[str, int]:
    counts = np.bincount(records.outcome[inside], minlength=len(records.outcomes)).tolist()
    return {name: count for name, count in zip(records.outcomes, counts, strict=True) if name != OK and count}


def _windows(records: Records, end_s: float) -> list[Window]:
    """Slices of equal length that fill the time of the sending, and at least ``SHORTEST_S`` each."""
    count = min(WINDOWS, max(1, int(end_s / SHORTEST_S)))
    seconds = max(SHORTEST_S, end_s / count)
    planned = np.minimum(records.planned_s / seconds, count - 1).astype(int)  # one at the very end is of the last slice
    ended = (records.ended_s / seconds).astype(int)
    ok = records.outcome == 0
    found = []
    for place in range(count):
        sent, came = planned == place, (ended == place) & ok
        response_ms = 1000 * (records.ended_s - records.planned_s)[sent & ok]
        middle, high = np.percentile(response_ms, (50, 99)) if len(response_ms) else (None, None)
        found.append(
            Window(
                start_s=place * seconds,
                seconds=seconds,
                sent=int(sent.sum()),
                ok=int(came.sum()),
                failed=int((sent & ~ok).sum()),
                images=int(records.images[came].sum()),
                p50_ms=None if middle is None else float(middle),
                p99_ms=None if high is None else float(high),
            )
        )
    return found


def _sender_limited(run: Run, lag: Any, response: Any) -> str:
    """Why the sender was the limit, if it was; callers of a closed loop are never late, so there only its processor tells."""
    remedy = f"use more senders (--senders {run.plan.senders + 1}), or a machine with more processors"
    late_ms = percentile_ms(lag, 99) if lag.total_count else 0.0
    slow_ms = percentile_ms(response, 99) if response.total_count else 0.0
    if not run.plan.closed_loop and late_ms > max(LAG_MS, LAG_SHARE * slow_ms):
        return f"1 % of requests were more than {late_ms:.1f} ms late, in a p99 of {slow_ms:.1f} ms; {remedy}"
    if run.client is not None and run.client.cpu_s and run.client.wall_s > 1:
        busiest = max(run.client.cpu_s) / run.client.wall_s
        if busiest > BUSY:
            return f"a sender's process worked {busiest:.0%} of the time; {remedy}"
    return ""
