"""Recorded arrivals, replayed: a text file with a line a request, or the file of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_client.errors import BadInput
from alexnet_load.figures import positive, whole

Times = npt.NDArray[np.float64]
Sizes = npt.NDArray[np.int32]
MOST_REQUESTS = 50_000_000
"""Of one schedule: 400 MB of times."""


@dataclass(frozen=True)
class Schedule:
    """Planned times, float64 [N] in order, seconds since the begin; ``sizes`` int32 [N] if the arrivals have their own."""

    times_s: Times
    sizes: Sizes | None = None


def read_trace(path: Path) -> Schedule:
    """What a file says.

    Raises:
        BadInput: it cannot be read; the text names the line.
    """
    if path.name.endswith(".jsonl.gz"):
        from alexnet_load.results import read_run

        records = read_run(path).records
        return Schedule(records.planned_s, records.images)
    times: list[float] = []
    sizes: list[int] = []
    try:
        with path.open() as lines:
            for number, line in enumerate(lines, 1):
                text = line.partition("#")[0].strip()
                if text:
                    _add_line(text, f"{path}, line {number}", times, sizes)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from None
    if len(sizes) not in (0, len(times)):
        raise BadInput(f"{path}: some lines say how many images, others do not; say it in all or in none")
    return Schedule(np.array(times, np.float64), np.array(sizes, np.int32) if sizes else None)


def _add_line(text: str, where: str, times: list[float], sizes: list[int]) -> None:
    time, _, images = text.partition(",")
    try:
        times.append(positive(time, zero=True))
        if images:
            sizes.append(whole(images))
    except ValueError as error:
        raise BadInput(f"{where}: {error}; a line is seconds since the begin, and perhaps a comma and images") from None
    if len(times) > 1 and times[-1] < times[-2]:
        raise BadInput(f"{where}: {times[-1]:g} s is before the line above; sort the file by time")
    if len(times) > MOST_REQUESTS:
        raise BadInput(f"{where}: a trace may have {MOST_REQUESTS:,} requests")
