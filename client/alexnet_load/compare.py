"""Compare two runs: is a result of the second run worse by more than a limit, with confidence intervals by a bootstrap?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from alexnet_client.errors import BadInput
from alexnet_load.run import Run
from alexnet_load.summary import sending_ended_s

Counts = npt.NDArray[np.float64]
WINDOW_S, MAX_WINDOWS = 1.0, 300
"""Windows of a long run are longer, so that the comparison of a day is as fast as that of an hour."""
MIN_WINDOWS = 5
CONFIDENCE = 0.95
"""Confidence level of the intervals."""
BUCKET_WIDTH = math.log1p(0.002)
"""Width of a latency bucket on a logarithmic scale: percentiles are exact within 0.1 %."""
MIN_LATENCY_S = 1e-6
MAX_CORRELATION = 0.95
"""Limit of the correlation between windows: the estimate is rough, and the block length diverges towards 1."""
PERCENTILES = (50, 95, 99)
ANSWER_RATE, IMAGE_RATE, ERROR_SHARE = "answers/s", "images/s", "share of errors"


@dataclass(frozen=True)
class Row:
    """One metric of two runs.

    Attributes:
        name: such as "p99 response, ms".
        a, b: values of the first and the second run.
        ratio: b / a; for the share of errors the difference b - a.
        low, high: confidence interval of the ratio.
        result: "regression", "improvement", "no difference", or "undecided" if a limit is within the interval.
    """

    name: str
    a: float
    b: float
    ratio: float
    low: float
    high: float
    result: str


@dataclass(frozen=True)
class Comparison:
    """Comparison of two runs.

    Attributes:
        rows: one entry per metric.
        differences: differences between the plans and machines of the runs.
        max_change: limit for metrics except errors, 0.05 for 5 % worse.
        max_errors: limit for additional failed requests, as a share of all requests.
    """

    rows: tuple[Row, ...]
    differences: tuple[str, ...]
    max_change: float
    max_errors: float

    @property
    def regressed(self) -> bool:
        """Whether any metric is a regression."""
        return any(row.result == "regression" for row in self.rows)


def compare_runs(
    a: Run,
    b: Run,
    *,
    max_change: float = 0.05,
    max_errors: float = 0.01,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two runs with a block bootstrap over time windows.

    Latencies of consecutive requests are correlated, so blocks of consecutive windows are resampled instead of requests. The
    interval of a metric contains the middle ``CONFIDENCE`` of its ratios and is widened for the small number of blocks. A
    metric is a regression if its whole interval is worse than the limit, and undecided if a limit is within the interval.
    Sources: Kuensch, "The jackknife and the bootstrap for general stationary observations", 1989; Politis and Romano, "A
    circular block-resampling procedure for stationary data", 1992. In simulations, intervals of 95 % contain the true value in
    at least 90 % of cases if a run is ten times as long as its slowest fluctuation, and in 85 % if it is five times as long.

    Args:
        a: reference run.
        b: run to evaluate.
        max_change: limit for metrics except errors, 0.05 for 5 % worse.
        max_errors: limit for additional failed requests as a share of all requests, 0.01 for 1 %.
        resamples: number of resamples.
        seed: seed of the resamples.

    Raises:
        BadInput: a run is too short, or an argument is out of range.
    """
    if not 0 <= max_change < 1 or not 0 <= max_errors < 1:
        raise BadInput(f"the limits must be at least 0 and below 1, got {max_change:g} and {max_errors:g}")
    rng = np.random.default_rng(seed)
    runs = count_windows(a, name="the first run"), count_windows(b, name="the second run")
    values_a, values_b = (_metrics(each, np.ones((1, each.windows))) for each in runs)
    resampled_a, resampled_b = (_metrics(each, _resample(each, resamples, rng)) for each in runs)
    wide = widening(min(each.windows / each.block for each in runs))
    rows = tuple(
        _row(
            name,
            (float(values_a[name][0]), float(values_b[name][0])),
            (resampled_a[name], resampled_b[name]),
            wide=wide,
            limit=max_errors if name == ERROR_SHARE else max_change,
        )
        for name in values_a
    )
    return Comparison(rows, tuple(_differences(a, b)), max_change, max_errors)


def _row(
    name: str,
    values: tuple[float, float],
    resampled: tuple[Counts, Counts],
    *,
    wide: float,
    limit: float,
) -> Row:
    a, b = values
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = resampled[1] - resampled[0] if name == ERROR_SHARE else resampled[1] / resampled[0]
        ratio = b - a if name == ERROR_SHARE else float(np.divide(b, a))
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios) or not math.isfinite(ratio):
        return Row(name, a, b, math.nan, math.nan, math.nan, "undecided")
    tail = 50 * (1 - CONFIDENCE)
    ends = [float(each) for each in np.percentile(ratios, (tail, 100 - tail))]
    if name == ERROR_SHARE or ratio == 0:
        low, high = (ratio + wide * (end - ratio) for end in ends)
    else:  # on a logarithmic scale, where 0.5 and 2 are equally far from 1
        low, high = (ratio * (end / ratio) ** wide for end in ends)
    equal = 0.0 if name == ERROR_SHARE else 1.0
    higher, lower = low > equal + limit, high < equal - limit
    worse, better = (lower, higher) if name in {ANSWER_RATE, IMAGE_RATE} else (higher, lower)
    contains_limit = low < equal - limit or high > equal + limit
    result = "regression" if worse else "improvement" if better else "undecided" if contains_limit else "no difference"
    return Row(name, a, b, ratio, low, high, result)


def _differences(a: Run, b: Run) -> Iterator[str]:
    """Differences that make runs less comparable."""
    for name in ("model", "arrivals", "sizes", "duration_s", "warm_up_s", "images", "senders", "batching"):
        ours, theirs = getattr(a.plan, name), getattr(b.plan, name)
        if ours != theirs:
            yield f"{name.removesuffix('_s').replace('_', ' ')}: {ours} and {theirs}"
    if a.machine != b.machine:
        yield f"machine: {a.machine} and {b.machine}"


@dataclass(frozen=True)
class LatencyCounts:
    """Answered requests by window and latency bucket: ``counts`` [windows, buckets], ``values_ms`` [buckets]."""

    counts: Counts
    values_ms: Counts

    def percentiles(self, weights: Counts) -> list[Counts]:
        """``PERCENTILES`` of each resample, ms [resamples]; NaN without answers."""
        summed = np.cumsum(weights @ self.counts, axis=1)
        if not summed.shape[1]:
            return [np.full(len(weights), np.nan) for _ in PERCENTILES]
        total = summed[:, -1:]
        found = [self.values_ms[(summed >= total * percent / 100).argmax(axis=1)] for percent in PERCENTILES]
        return [np.where(total[:, 0] > 0, each, np.nan) for each in found]


@dataclass(frozen=True)
class WindowCounts:
    """A run as counts per time window; the metrics of a resample are products of its weights and these counts.

    Attributes:
        seconds: length of a window.
        windows: number of windows.
        latencies: "response" and "service" time.
        requests, failed: requests planned in each window, and those of them that failed, [windows].
        answers, images: answers that arrived in each window, and images in them, [windows].
    """

    seconds: float
    windows: int
    latencies: dict[str, LatencyCounts]
    requests: Counts
    failed: Counts
    answers: Counts
    images: Counts

    @property
    def block(self) -> int:
        """Number of windows in a block.

        The optimal length for a first-order autoregression: Carlstein, "The use of subseries values for estimating the variance
        of a general statistic from a stationary sequence", 1986; at least the cube root and at most a quarter of the number
        of windows.
        """
        response = self.latencies["response"]
        answered = response.counts.sum(axis=1)
        level = (response.counts @ np.log(response.values_ms))[answered > 0] / answered[answered > 0]
        level -= level.mean() if len(level) else 0.0
        correlation = float(level[1:] @ level[:-1]) / max(float(level @ level), 1e-12)
        correlation = min(MAX_CORRELATION, max(0.0, correlation))
        factor = max(1.0, (math.sqrt(6) * correlation / (1 - correlation**2)) ** (2 / 3))
        length: float = factor * self.windows ** (1 / 3)
        return max(1, min(round(length), self.windows // 4))


def count_windows(run: Run, *, name: str) -> WindowCounts:
    """Count a run by time windows after the warm-up; an incomplete last window is omitted.

    Raises:
        BadInput: the run is too short; the text contains ``name``.
    """
    records, start_s = run.records, run.plan.warm_up_s
    length_s = sending_ended_s(run) - start_s
    seconds = max(WINDOW_S, length_s / MAX_WINDOWS)
    windows = int(length_s / seconds + 1e-6)
    if windows < MIN_WINDOWS:
        raise BadInput(
            f"{name} is too short: {max(0.0, length_s):.1f} s after the warm-up, at least {MIN_WINDOWS * WINDOW_S:.0f} s "
            "are needed"
        )
    planned, ended = (
        np.floor((times_s - start_s) / seconds).astype(int) for times_s in (records.planned_s, records.ended_s)
    )
    measured, arrived = ((each >= 0) & (each < windows) for each in (planned, ended))
    ok = records.outcome == 0
    answered, arrived = measured & ok, arrived & ok
    return WindowCounts(
        seconds=seconds,
        windows=windows,
        latencies={
            kind: _latency_counts(planned[answered], (records.ended_s - since)[answered], windows)
            for kind, since in (("response", records.planned_s), ("service", records.sent_s))
        },
        requests=np.bincount(planned[measured], minlength=windows).astype(float),
        failed=np.bincount(planned[measured & ~ok], minlength=windows).astype(float),
        answers=np.bincount(ended[arrived], minlength=windows).astype(float),
        images=np.bincount(ended[arrived], weights=records.images[arrived], minlength=windows).astype(float),
    )


def _latency_counts(window: npt.NDArray[np.int_], latency_s: Counts, windows: int) -> LatencyCounts:
    buckets = np.floor(np.log(np.maximum(latency_s, MIN_LATENCY_S)) / BUCKET_WIDTH).astype(int)
    used, bucket = np.unique(buckets, return_inverse=True)
    counts = np.bincount(window * len(used) + bucket, minlength=windows * len(used)).reshape(windows, len(used))
    return LatencyCounts(counts.astype(float), 1000 * np.exp((used + 0.5) * BUCKET_WIDTH))


def _resample(run: WindowCounts, resamples: int, rng: np.random.Generator) -> Counts:
    """How often each resample contains each window, [resamples, windows]; blocks wrap around at the end."""
    blocks = math.ceil(run.windows / run.block)
    starts = rng.multinomial(blocks, np.full(run.windows, 1 / run.windows), size=resamples)
    weights: Counts = np.sum([np.roll(starts, shift, axis=1) for shift in range(run.block)], axis=0, dtype=float)
    return weights


def widening(blocks: float) -> float:
    """Factor by which an interval from few blocks is widened: Student's t distribution instead of the normal distribution.

    Source of the expansion: Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 26.7.5.
    """
    z, freedom = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), blocks - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return math.sqrt(blocks / freedom) * t / z


def _metrics(run: WindowCounts, weights: Counts) -> dict[str, Counts]:
    """Every metric of every resample, by name."""
    metrics = {
        f"p{percent} {kind}, ms": values
        for kind, latencies in run.latencies.items()
        for percent, values in zip(PERCENTILES, latencies.percentiles(weights), strict=True)
    }
    seconds = weights.sum(axis=1) * run.seconds
    metrics[ANSWER_RATE] = weights @ run.answers / seconds
    metrics[IMAGE_RATE] = weights @ run.images / seconds
    metrics[ERROR_SHARE] = weights @ run.failed / np.maximum(weights @ run.requests, 1)
    return metrics
