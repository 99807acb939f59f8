"""Two runs side by side, with intervals: is the second one worse beyond chance, by more than it may?

Pure; ``slices`` knows what a resample shows, this module what that means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from alexnet_client.errors import BadInput
from alexnet_load.run import Run
from alexnet_load.slices import ANSWERS, ERRORS, IMAGES, Counts, draw, figures, sliced, widening


@dataclass(frozen=True)
class Row:
    """One figure of two runs.

    Attributes:
        name: such as "p99 response, ms".
        a, b: of the first and the second run.
        ratio: b / a; for shares the difference b - a.
        low, high: the interval of that.
        verdict: "regression", "improvement", "no difference", or "undecided" where the interval holds a limit.
    """

    name: str
    a: float
    b: float
    ratio: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Two runs compared.

    Attributes:
        rows: figure by figure.
        differences: what the two were asked that differs, in words.
        share: how much worse a figure may be.
        errors: how many more requests may fail, as a share of all.
        confidence: of the intervals.
    """

    rows: tuple[Row, ...]
    differences: tuple[str, ...]
    share: float
    errors: float
    confidence: float

    @property
    def regressed(self) -> bool:
        """Whether any figure is a regression."""
        return any(row.verdict == "regression" for row in self.rows)


def compare(
    a: Run,
    b: Run,
    *,
    confidence: float = 0.95,
    share: float = 0.05,
    errors: float = 0.01,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two runs by a block bootstrap over slices of time.

    Latencies of neighbours hang together, so blocks of neighbouring slices are drawn again and not single requests; the
    interval of a figure holds the middle ``confidence`` of its ratios, widened for the number of blocks. A figure is a
    regression if its whole interval is worse than the limit, and undecided if a limit is inside. Sources: Kuensch, "The
    jackknife and the bootstrap for general stationary observations", 1989; the series is closed to a circle, so that its
    ends count as much as its middle, after Politis and Romano, "A circular block-resampling procedure for stationary data",
    1992. Simulated, intervals of 95 % hold the truth in 90 % or more of cases if a run is ten times as long as its slowest
    swing, and in 85 % if five times.

    Args:
        a: the run to compare with.
        b: the run to judge.
        confidence: of the intervals.
        share: how much worse a figure may be, 0.05 for 5 %.
        errors: how many more requests may fail, as a share of all, 0.01 for 1 %.
        resamples: how often to draw.
        seed: of the dice.

    Raises:
        BadInput: a run has too little to draw from, or a number makes no sense.
    """
    if not 0 < confidence < 1 or not 0 <= share < 1 or not 0 <= errors < 1 or resamples < 10:
        raise BadInput(
            "confidence must be between 0 and 1, share and errors at least 0 and below 1, resamples at least 10; "
            f"got {confidence:g}, {share:g}, {errors:g} and {resamples}"
        )
    dice = np.random.default_rng(seed)
    sides = sliced(a, name="the first run"), sliced(b, name="the second run")
    seen_a, seen_b = (figures(side, np.ones((1, side.slices))) for side in sides)
    drawn_a, drawn_b = (figures(side, draw(side, resamples, dice)) for side in sides)
    wide = widening(min(side.slices / side.block for side in sides), confidence)
    rows = tuple(
        _row(
            name,
            (float(seen_a[name][0]), float(seen_b[name][0])),
            (drawn_a[name], drawn_b[name]),
            confidence=confidence,
            wide=wide,
            share=errors if name == ERRORS else share,
        )
        for name in seen_a
    )
    return Comparison(rows, tuple(_differences(a, b)), share, errors, confidence)


def _row(
    name: str, seen: tuple[float, float], drawn: tuple[Counts, Counts], *, confidence: float, wide: float, share: float
) -> Row:
    a, b = seen
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[1] - drawn[0] if name == ERRORS else drawn[1] / drawn[0]
        ratio = b - a if name == ERRORS else float(np.divide(b, a))
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios) or not math.isfinite(ratio):
        return Row(name, a, b, math.nan, math.nan, math.nan, "undecided")
    tail = 50 * (1 - confidence)
    ends = [float(each) for each in np.percentile(ratios, (tail, 100 - tail))]
    if name == ERRORS or ratio == 0:
        low, high = (ratio + wide * (end - ratio) for end in ends)
    else:  # on a log scale, where a half is as far from 1 as 2
        low, high = (ratio * (end / ratio) ** wide for end in ends)
    unit = 0.0 if name == ERRORS else 1.0
    more, less = low > unit + share, high < unit - share
    worse, better = (less, more) if name in {ANSWERS, IMAGES} else (more, less)
    open_still = low < unit - share or high > unit + share
    verdict = "regression" if worse else "improvement" if better else "undecided" if open_still else "no difference"
    return Row(name, a, b, ratio, low, high, verdict)


def _differences(a: Run, b: Run) -> Iterator[str]:
    """What must be the same for the runs to be comparable, and is not."""
    for name in ("model", "arrivals", "sizes", "duration_s", "warm_up_s", "images", "senders", "batching"):
        ours, theirs = getattr(a.plan, name), getattr(b.plan, name)
        if ours != theirs:
            yield f"{name.removesuffix('_s').replace('_', ' ')}: {ours} and {theirs}"
    if a.machine != b.machine:
        yield f"machine: {a.machine} and {b.machine}"
