"""Measure the speed of models in alternating rounds of one run, because the speed of a machine changes over minutes."""

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
"""Runs of a batch of one in a row; a run is short, and threads of the previous session still spin during the first ones."""


@dataclass(frozen=True)
class Speed:
    """Seconds of each round, by batch size."""

    seconds: Mapping[int, Sequence[float]]

    def median(self, batch: int) -> float:
        """Median seconds of a batch of this size."""
        return statistics.median(self.seconds[batch])

    @property
    def best_batch(self) -> int:
        """Batch size with the highest throughput."""
        return max(self.seconds, key=lambda batch: batch / self.median(batch))

    @property
    def images_per_second(self) -> float:
        """Throughput at the best batch size."""
        return self.best_batch / self.median(self.best_batch)


def measure(
    runners: Mapping[str, Runner],
    *,
    rounds: int,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats_of_one: int = REPEATS_OF_ONE,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Speed]:
    """Time every runner at every batch size in each round; an additional first round is the warm-up and not counted."""
    pixels = np.random.default_rng(0).integers(0, 256, (max(batch_sizes), 224, 224, 3)).astype(np.uint8)
    found: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in batch_sizes} for name in runners}
    for number in range(rounds + 1):
        for batch in batch_sizes:
            for name, run in runners.items():
                seconds = median_seconds(partial(run, pixels[:batch]), repeats_of_one if batch == 1 else 1)
                if number:
                    found[name][batch].append(seconds)
        on_round()
    return {name: Speed(seconds) for name, seconds in found.items()}


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds of ``repeats`` runs in a row; the first is not counted if there are more."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:] or found)
