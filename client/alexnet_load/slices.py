"""A run as counts by slice of time, drawn again: what would another run of the same kind have shown?

Pure. It owns the bootstrap; what a difference means is not its business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from alexnet_client.errors import BadInput
from alexnet_load.run import Run
from alexnet_load.summary import sending_ended_s

Counts = npt.NDArray[np.float64]
SLICE_S, MOST_SLICES = 1.0, 300
"""Slices of a long run are longer, so that a day is compared as fast as an hour."""
LEAST_SLICES = 5
WIDTH = math.log1p(0.002)
"""Of a bucket of latency, on a log scale: percentiles are within 0.1 %."""
LEAST_S = 1e-6
MOST_KEPT = 0.95
"""What a slice is taken to hold of the one before at most: the estimate is rough, and its block explodes towards 1."""
PERCENTS = (50, 95, 99)
ANSWERS, IMAGES, ERRORS = "answers a second", "images a second", "share of errors"


@dataclass(frozen=True)
class Latencies:
    """Answered requests by slice of their planned time and by latency: ``counts`` [slices, buckets], ``values_ms`` [buckets]."""

    counts: Counts
    values_ms: Counts

    def percentiles(self, weights: Counts) -> list[Counts]:
        """``PERCENTS`` of each resample, ms [resamples]; NaN for one without answers."""
        summed = np.cumsum(weights @ self.counts, axis=1)
        if not summed.shape[1]:
            return [np.full(len(weights), np.nan) for _ in PERCENTS]
        total = summed[:, -1:]
        found = [self.values_ms[(summed >= total * percent / 100).argmax(axis=1)] for percent in PERCENTS]
        return [np.where(total[:, 0] > 0, each, np.nan) for each in found]


@dataclass(frozen=True)
class Sliced:
    """A run as counts by slice of time: what a resample shows is a product of its weights with them.

    Attributes:
        seconds: the length of a slice.
        slices: how many.
        latencies: "response" and "service" time.
        requests, failed: planned in each slice, [slices].
        answers, images: that came in each slice, [slices].
    """

    seconds: float
    slices: int
    latencies: dict[str, Latencies]
    requests: Counts
    failed: Counts
    answers: Counts
    images: Counts

    @property
    def block(self) -> int:
        """How many slices hang together.

        The length that serves a series of which each value holds a part of the one before: Carlstein, "The use of subseries
        values for estimating the variance of a general statistic from a stationary sequence", 1986; the cube root of the
        number of slices at least, and a quarter of them at most.
        """
        response = self.latencies["response"]
        answered = response.counts.sum(axis=1)
        level = (response.counts @ np.log(response.values_ms))[answered > 0] / answered[answered > 0]
        level -= level.mean() if len(level) else 0.0
        alike = float(level[1:] @ level[:-1]) / max(float(level @ level), 1e-12)
        kept = min(MOST_KEPT, max(0.0, alike))
        length: float = max(1.0, (math.sqrt(6) * kept / (1 - kept**2)) ** (2 / 3)) * self.slices ** (1 / 3)
        return max(1, min(round(length), self.slices // 4))


def sliced(run: Run, *, name: str) -> Sliced:
    """Count a run by slices of the time behind its warm-up; what is left behind the last whole one is left out.

    Raises:
        BadInput: it is too short; the text calls it by ``name``.
    """
    records, begin_s = run.records, run.plan.warm_up_s
    length_s = sending_ended_s(run) - begin_s
    seconds = max(SLICE_S, length_s / MOST_SLICES)
    slices = int(length_s / seconds + 1e-6)
    if slices < LEAST_SLICES:
        raise BadInput(
            f"{name} was measured for {max(0.0, length_s):.1f} s behind its warm-up, {LEAST_SLICES * SLICE_S:.0f} s are "
            "needed; make a longer one"
        )
    planned, ended = (
        np.floor((times_s - begin_s) / seconds).astype(int) for times_s in (records.planned_s, records.ended_s)
    )
    inside, came = ((each >= 0) & (each < slices) for each in (planned, ended))
    ok = records.outcome == 0
    answered, came = inside & ok, came & ok
    return Sliced(
        seconds=seconds,
        slices=slices,
        latencies={
            kind: _latencies(planned[answered], (records.ended_s - since)[answered], slices)
            for kind, since in (("response", records.planned_s), ("service", records.sent_s))
        },
        requests=np.bincount(planned[inside], minlength=slices).astype(float),
        failed=np.bincount(planned[inside & ~ok], minlength=slices).astype(float),
        answers=np.bincount(ended[came], minlength=slices).astype(float),
        images=np.bincount(ended[came], weights=records.images[came], minlength=slices).astype(float),
    )


def _latencies(place: npt.NDArray[np.int_], latency_s: Counts, slices: int) -> Latencies:
    buckets = np.floor(np.log(np.maximum(latency_s, LEAST_S)) / WIDTH).astype(int)
    known, bucket = np.unique(buckets, return_inverse=True)
    counts = np.bincount(place * len(known) + bucket, minlength=slices * len(known)).reshape(slices, len(known))
    return Latencies(counts.astype(float), 1000 * np.exp((known + 0.5) * WIDTH))


def draw(side: Sliced, resamples: int, dice: np.random.Generator) -> Counts:
    """How often each slice is in each resample, [resamples, slices]."""
    blocks = math.ceil(side.slices / side.block)
    begins = dice.multinomial(blocks, np.full(side.slices, 1 / side.slices), size=resamples)
    weights: Counts = np.sum([np.roll(begins, shift, axis=1) for shift in range(side.block)], axis=0, dtype=float)
    return weights


def widening(blocks: float, confidence: float) -> float:
    """How much wider an interval is to be, for few blocks know little of their own spread: Student's t against the normal.

    Source of the expansion: Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 26.7.5.
    """
    z, known = NormalDist().inv_cdf((1 + confidence) / 2), blocks - 1
    t = z + (z**3 + z) / (4 * known) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * known**2)
    return math.sqrt(blocks / known) * t / z


def figures(side: Sliced, weights: Counts) -> dict[str, Counts]:
    """Every figure of every resample, by name."""
    found = {
        f"p{percent} {kind}, ms": values
        for kind, latencies in side.latencies.items()
        for percent, values in zip(PERCENTS, latencies.percentiles(weights), strict=True)
    }
    drawn_s = weights.sum(axis=1) * side.seconds
    found[ANSWERS] = weights @ side.answers / drawn_s
    found[IMAGES] = weights @ side.images / drawn_s
    found[ERRORS] = weights @ side.failed / np.maximum(weights @ side.requests, 1)
    return found
