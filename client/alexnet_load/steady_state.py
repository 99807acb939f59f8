"""Find the steady state of a run from one value per time window. Contains only the statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
MIN_WINDOWS = 8
"""Minimum number of windows for a decision, also after the transient is removed."""
SIGNIFICANCE = 0.01
"""Probability that the noise of a steady run is taken for a trend, as far as the normal approximation holds."""
MIN_TREND = 0.05
"""A trend with a total change below this share of the median is ignored. Half of the 10 % that must be detected."""
TRANSIENT_GAIN = 0.45
"""The transient is removed if this reduces the error below this share; for a straight line it would reduce it to a half."""
OVERLOAD_GROWTH = 0.02
"""Growth of the response time, seconds per second, when arrivals exceed answers by 2 %: the backlog after t seconds takes
t (arrivals / answers - 1) seconds."""


@dataclass(frozen=True)
class SteadyState:
    """Start of the steady state, seconds since the start of the run; None if there is none, with the reason."""

    from_s: float | None
    reason: str = ""


def find_steady_state(starts_s: Sequence[float], p50_ms: Sequence[float | None]) -> SteadyState:
    """Find the steady state in the median response times of time windows.

    The transient at the start is removed, then the rest is tested for a trend. In simulations (see the tests), at most 3 % of
    the runs without a trend are called unsteady (7 % if neighbours have a correlation of 0.6), and a change of 10 % is detected
    in 9 of 10 runs with 36 windows and a noise of 2 %, or 60 windows and a noise of 4 %.

    Args:
        starts_s: start of each window, seconds since the start of the run.
        p50_ms: its median response time, milliseconds; None or NaN without answers.
    """
    answered = [
        (start, value)
        for start, value in zip(starts_s, p50_ms, strict=True)
        if value is not None and not math.isnan(value)
    ]
    empty = len(starts_s) - len(answered)
    if len(answered) < MIN_WINDOWS:
        return SteadyState(
            None, f"the run is too short: {len(answered)} time windows contain answers, {MIN_WINDOWS} are needed"
        )
    if empty > len(starts_s) / 10:
        return SteadyState(
            None, f"{empty} of {len(starts_s)} time windows contain no answer, because of an outage or too few requests"
        )
    times_s, values_ms = (np.array(column, np.float64) for column in zip(*answered, strict=True))
    first = transient(np.log(np.maximum(values_ms, 1e-6)))  # with logarithms, a single peak is not a transient
    return _test_trend(times_s[first:], values_ms[first:], span_s=float(times_s[-1] - times_s[0]))


def _test_trend(times_s: Values, values_ms: Values, *, span_s: float) -> SteadyState:
    slope = theil_sen(times_s, values_ms)
    change = abs(slope) * span_s / max(float(np.median(values_ms)), 1e-6)
    overload = slope / 1000 >= OVERLOAD_GROWTH  # residuals of such a strong trend do not describe the noise
    residuals = None if overload else values_ms - slope * times_s
    if change < MIN_TREND or mann_kendall(values_ms, residuals=residuals) >= SIGNIFICANCE:
        return SteadyState(float(times_s[0]))
    if overload:
        return SteadyState(
            None,
            f"the response time grows by {slope / 1000:.2g} s per second, because requests arrive faster than they are answered",
        )
    direction = "grows" if slope > 0 else "falls"
    return SteadyState(
        None,
        f"the response time {direction} by {change:.0%} in {span_s:.0f} s; use a longer warm-up or a longer run",
    )


def transient(values: Values) -> int:
    """Return the number of values at the start to exclude from a mean: 0, or up to half of them.

    Source: the marginal standard error rule (White, "An effective truncation heuristic for bias reduction in simulation
    output", Simulation 69, 1997) with the threshold ``TRANSIENT_GAIN``: the plain rule would cut the first half of a trend,
    and parts of noise.
    """
    longest = max(0, min(len(values) // 2, len(values) - MIN_WINDOWS))
    errors = [float(np.var(values[cut:])) / (len(values) - cut) for cut in range(longest + 1)]
    best = int(np.argmin(errors))
    return best if errors[best] < TRANSIENT_GAIN * errors[0] else 0


def mann_kendall(values: Values, *, residuals: Values | None = None) -> float:
    """Return the p-value of the Mann-Kendall trend test: two-sided, normal approximation, with ties.

    Sources: Mann, "Nonparametric tests against trend", Econometrica 13, 1945; Kendall, "Rank correlation methods", 1948.

    Args:
        values: in the order of time.
        residuals: the values without their trend. If neighbours are correlated, the effective number of values is reduced
            (Yue and Wang, "The Mann-Kendall test modified by effective sample size", Water Resources Management 18, 2004, with
            the correlations of a first-order autoregression).
    """
    count = len(values)
    early, late = np.triu_indices(count, 1)
    score = float(np.sign(values[late] - values[early]).sum())
    _, ties = np.unique(values, return_counts=True)
    variance = (count * (count - 1) * (2 * count + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0:
        return 1.0
    inflation = 1.0 if residuals is None else _variance_inflation(residuals)
    distance = max(0.0, abs(score) - 1) / math.sqrt(variance * inflation)
    return math.erfc(distance / math.sqrt(2))


def _variance_inflation(residuals: Values) -> float:
    """Factor by which the correlation of neighbours increases the variance of a sum; at least 1."""
    centred = residuals - residuals.mean()
    power = float((centred * centred).sum())
    neighbours = float((centred[1:] * centred[:-1]).sum()) / power if power else 0.0
    correlation, lags = min(max(neighbours, 0.0), 0.95), np.arange(1, len(residuals))
    return 1 + 2 * float(((1 - lags / len(residuals)) * correlation**lags).sum())


def theil_sen(times: Values, values: Values) -> float:
    """Return the median of the slopes between all pairs (Theil, 1950; Sen, J. American Statistical Association 63, 1968)."""
    early, late = np.triu_indices(len(values), 1)
    return float(np.median((values[late] - values[early]) / (times[late] - times[early])))
