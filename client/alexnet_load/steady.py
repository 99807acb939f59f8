"""Whether a run came to rest, and from when: one value for each slice of time is looked at.

Owns the statistics of that judgement. Pure: it imports neither what makes the slices nor what reports them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
LEAST = 8
"""Slices below which nothing can be said; so many are left when the begin is cut off."""
ALARM = 0.01
"""Chance to take the noise of a steady run for a trend, as far as the normal approximation holds."""
DRIFT = 0.05
"""A trend that adds up to less than this share of the median harms no figure. Half of the 10 % that must be noticed."""
GAIN = 0.45
"""A begin is cut off if this makes the error less than this share of what it was: a straight line comes down to half."""
FLOOD = 0.02
"""Seconds by which response times grow in a second when 2 % more comes than is answered: the backlog after t seconds takes
t (arrivals / answers - 1) seconds."""


@dataclass(frozen=True)
class Steadiness:
    """From when a run was steady, seconds since its begin; None, with the reason in words, if it was not or nobody can tell."""

    steady_from_s: float | None
    reason: str = ""


def judge_steadiness(starts_s: Sequence[float], p50_ms: Sequence[float | None]) -> Steadiness:
    """Judge the median response times of a run's slices of time.

    First the transient at the begin is cut off, then a trend is looked for in the rest. Of runs without a trend at most 3 %
    are called unsteady (7 % where neighbours are correlated by 0.6); growth by 10 % is noticed in 9 of 10 runs of 36 slices
    whose medians vary by 2 %, and of 60 slices whose medians vary by 4 %. The tests simulate both.

    Args:
        starts_s: the begin of each slice, seconds since the run began.
        p50_ms: its median response time, milliseconds; None or NaN where nothing was answered.
    """
    answered = [
        (start, value)
        for start, value in zip(starts_s, p50_ms, strict=True)
        if value is not None and not math.isnan(value)
    ]
    silent = len(starts_s) - len(answered)
    if len(answered) < LEAST:
        return Steadiness(
            None, f"the run is too short to tell: {len(answered)} slices of time had answers, {LEAST} are needed"
        )
    if silent > len(starts_s) / 10:
        return Steadiness(
            None, f"nothing was answered in {silent} of {len(starts_s)} slices of time: an outage, or too few requests"
        )
    times_s, values_ms = (np.array(column, np.float64) for column in zip(*answered, strict=True))
    first = transient(np.log(np.maximum(values_ms, 1e-6)))  # on logarithms a spike is no transient
    return _judge_rest(times_s[first:], values_ms[first:], span_s=float(times_s[-1] - times_s[0]))


def _judge_rest(times_s: Values, values_ms: Values, *, span_s: float) -> Steadiness:
    slope = theil_sen(times_s, values_ms)
    moved = abs(slope) * span_s / max(float(np.median(values_ms)), 1e-6)
    flood = slope / 1000 >= FLOOD  # in so strong a trend, what is left without it says little about the noise
    if moved < DRIFT or mann_kendall(values_ms, residuals=None if flood else values_ms - slope * times_s) >= ALARM:
        return Steadiness(float(times_s[0]))
    if flood:
        return Steadiness(
            None,
            f"response times grow by {slope / 1000:.2g} s each second: requests come faster than they are answered",
        )
    direction = "grow" if slope > 0 else "fall"
    return Steadiness(
        None, f"response times {direction} by {moved:.0%} in {span_s:.0f} s; warm up longer, or run longer"
    )


def transient(values: Values) -> int:
    """How many values at the begin are better left out of a mean: 0, or up to half of them.

    Source: the marginal standard error rule (White, "An effective truncation heuristic for bias reduction in simulation
    output", Simulation 69, 1997), with ``GAIN`` as a threshold: the plain rule would cut a trend down to its second half, and
    noise anywhere.
    """
    most = max(0, min(len(values) // 2, len(values) - LEAST))
    errors = [float(np.var(values[cut:])) / (len(values) - cut) for cut in range(most + 1)]
    best = int(np.argmin(errors))
    return best if errors[best] < GAIN * errors[0] else 0


def mann_kendall(values: Values, *, residuals: Values | None = None) -> float:
    """The chance that values without a trend look as much like one: two-sided, normal approximation, ties counted.

    Sources: Mann, "Nonparametric tests against trend", Econometrica 13, 1945; Kendall, "Rank correlation methods", 1948.

    Args:
        values: in the order of time.
        residuals: what is left of them without the trend. Neighbours that resemble each other count as fewer values then
            (Yue and Wang, "The Mann-Kendall test modified by effective sample size", Water Resources Management 18, 2004, with
            correlations that decay as in an autoregression of order 1).
    """
    count = len(values)
    early, late = np.triu_indices(count, 1)
    score = float(np.sign(values[late] - values[early]).sum())
    _, ties = np.unique(values, return_counts=True)
    variance = (count * (count - 1) * (2 * count + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0:
        return 1.0
    inflation = 1.0 if residuals is None else _inflation(residuals)
    distance = max(0.0, abs(score) - 1) / math.sqrt(variance * inflation)
    return math.erfc(distance / math.sqrt(2))


def _inflation(residuals: Values) -> float:
    """By how much correlation between neighbours widens the spread of a sum, squared; at least 1."""
    centred = residuals - residuals.mean()
    power = float((centred * centred).sum())
    neighbours = float((centred[1:] * centred[:-1]).sum()) / power if power else 0.0
    correlation, lags = min(max(neighbours, 0.0), 0.95), np.arange(1, len(residuals))
    return 1 + 2 * float(((1 - lags / len(residuals)) * correlation**lags).sum())


def theil_sen(times: Values, values: Values) -> float:
    """The median slope between any two values (Theil, 1950; Sen, J. American Statistical Association 63, 1968)."""
    early, late = np.triu_indices(len(values), 1)
    return float(np.median((values[late] - values[early]) / (times[late] - times[early])))
