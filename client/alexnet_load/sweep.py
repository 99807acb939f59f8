"""Rates of a sweep, and the knee of its throughput-latency curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alexnet_client.errors import BadInput

SENSITIVITY = 0.1
"""Minimum distance of the knee from the chord, as a share of the height of the curve."""
MIN_RISE = 1.5
"""A curve whose latency rises by less than this factor has no knee: its bends are noise."""


@dataclass(frozen=True)
class CurvePoint:
    """One rate of a sweep, requests/s; answered images/s; latencies, ms, infinite without answers; share of errors."""

    rate: float
    image_rate: float
    p50_ms: float
    p99_ms: float
    errors: float


def sweep_rates(low: float, high: float, steps: int) -> list[float]:
    """Return ``steps`` rates from ``low`` to ``high`` with equal ratios.

    Raises:
        BadInput: the range is invalid.
    """
    if not 0 < low < high < math.inf or steps < 2:
        raise BadInput(
            f"a sweep needs a positive rate, a higher one and at least 2 steps; got {low:g} to {high:g} in {steps} steps"
        )
    return [float(rate) for rate in np.geomspace(low, high, steps)]


def find_knee(rates: Sequence[float], latencies_ms: Sequence[float]) -> int | None:
    """Return the index of the knee, from which latency rises faster than throughput; None if the curve has no knee.

    The knee is the point of a convex rising curve with the largest distance below the chord between its ends, both axes scaled
    from 0 to 1. The latency axis is logarithmic, because otherwise a single outlier would decide. Source: Satopaa et al.,
    "Finding a 'kneedle' in a haystack", ICDCS workshops 2011; here the highest local maximum counts and nothing is smoothed,
    because a sweep has about ten points, each from many requests.

    Args:
        rates: planned or answered requests per second, in the order of the sweep.
        latencies_ms: latency of each; infinite values, and the values after the highest one, are ignored.
    """
    known = [place for place, value in enumerate(latencies_ms) if 0 < value < math.inf]
    if not known:
        return None
    known = known[: 1 + max(range(len(known)), key=lambda each: latencies_ms[known[each]])]
    x = np.array([rates[place] for place in known])
    y = np.log([latencies_ms[place] for place in known])
    if len(known) < 3 or not np.ptp(x) or np.ptp(y) < math.log(MIN_RISE):
        return None
    distance = (x - x.min()) / np.ptp(x) - (y - y.min()) / np.ptp(y)
    place = int(np.argmax(distance))
    return known[place] if distance[place] >= SENSITIVITY else None
