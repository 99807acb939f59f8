"""Rates for a sweep, and the knee of the curve they give. Pure: the sweep itself is made elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alexnet_client.errors import BadInput

SENSITIVITY = 0.1
"""How far below the chord the curve must bend, as a share of its height, to have a knee at all."""
LEAST_RISE = 1.5
"""A latency that does not rise by this factor has no knee: the bends of a flat curve are noise."""


@dataclass(frozen=True)
class CurvePoint:
    """One rate of a sweep, requests a second; answered images a second; latencies, infinite if none; share of errors."""

    rate: float
    image_rate: float
    p50_ms: float
    p99_ms: float
    errors: float


def sweep_rates(low: float, high: float, steps: int) -> list[float]:
    """``steps`` rates from ``low`` to ``high``, each the same factor above the one before.

    Raises:
        BadInput: there is no such range.
    """
    if not 0 < low < high < math.inf or steps < 2:
        raise BadInput(
            f"a sweep goes from a positive rate to a higher one in at least 2 steps, not {low:g} to {high:g} in {steps}"
        )
    return [float(rate) for rate in np.geomspace(low, high, steps)]


def knee(rates: Sequence[float], latencies_ms: Sequence[float]) -> int | None:
    """The place where latency begins to cost more than throughput gains; None where the curve has no bend.

    The point of a convex rising curve that lies furthest below the chord between its ends, both axes scaled from 0 to 1.
    Latency is taken on a logarithmic scale, or one point far out would decide. Source: Satopaa et al., "Finding a 'kneedle' in
    a haystack", ICDCS workshops 2011; of its local maxima the highest is taken, and nothing is smoothed: a sweep has ten
    points, each from many requests.

    Args:
        rates: offered or answered requests a second, in the order of the sweep; answered ones may end level.
        latencies_ms: of each; those that are not finite, and what comes after the highest, are beyond the curve.
    """
    known = [place for place, value in enumerate(latencies_ms) if 0 < value < math.inf]
    if not known:
        return None
    known = known[: 1 + max(range(len(known)), key=lambda each: latencies_ms[known[each]])]
    along = np.array([rates[place] for place in known])
    up = np.log([latencies_ms[place] for place in known])
    if len(known) < 3 or not np.ptp(along) or np.ptp(up) < math.log(LEAST_RISE):
        return None
    below = (along - along.min()) / np.ptp(along) - (up - up.min()) / np.ptp(up)
    place = int(np.argmax(below))
    return known[place] if below[place] >= SENSITIVITY else None
