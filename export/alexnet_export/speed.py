"""How fast models answer, side by side: in turns within one run, because machines change their speed by the minute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from alexnet_export.runners import Runner

BATCH_SIZES = (1, 16, 32, 64)
REPEATS_OF_ONE = 30
"""Runs of a batch of one in a row: it is short, and the threads of the session before still spin through the first ones."""


@dataclass(frozen=True)
class Speed:
    """Seconds a run took, by batch size, in the order of the rounds."""

    seconds: Mapping[int, Sequence[float]]

    def median(self, batch: int) -> float:
        """Seconds of a run of ``batch`` images."""
        return statistics.median(self.seconds[batch])

    @property
    def best_batch(self) -> int:
        """The batch size with the most images a second."""
        return max(self.seconds, key=lambda batch: batch / self.median(batch))

    @property
    def images_per_second(self) -> float:
        """At the best batch size."""
        return self.best_batch / self.median(self.best_batch)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the other side: the median of the rounds' ratios, and their middle half."""

    median: float
    low: float
    high: float


def measure(
    runners: Mapping[str, Runner],
    *,
    rounds: int,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Speed]:
    """Time every runner at every batch size in each of ``rounds``; a first round warms up and does not count."""
    pixels = np.random.default_rng(0).integers(0, 256, (max(batch_sizes), 224, 224, 3)).astype(np.uint8)
    seconds: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in batch_sizes} for name in runners}
    for number in range(rounds + 1):
        for batch in batch_sizes:
            for name, run in runners.items():
                found = _seconds(partial(run, pixels[:batch]), REPEATS_OF_ONE if batch == 1 else 1)
                if number:
                    seconds[name][batch].append(found)
        on_round()
    return {name: Speed(found) for name, found in seconds.items()}


def time_in_turns(runs: Mapping[str, Callable[[], Any]], *, rounds: int, repeats: int = 1) -> dict[str, list[float]]:
    """Seconds of each of ``runs`` in each of ``rounds``, after a first round that does not count.

    With ``repeats`` a run is made so often in a row, and the median of all but the first counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            found = _seconds(run, repeats)
            if number:
                seconds[name].append(found)
    return seconds


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:] or found)


def ratio(fast: Sequence[float], slow: Sequence[float]) -> Ratio:
    """``slow`` over ``fast``, run by run as they alternated."""
    ratios = [theirs / ours for ours, theirs in zip(fast, slow, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Ratio(middle, low, high)
