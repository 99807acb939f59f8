"""What a soak saw, second by second, and whether it was steady. Pure but for the picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WARM_UP = 0.2
"""Share of the run that is not judged: buffers and arenas grow to their size."""


@dataclass(frozen=True)
class Sample:
    """One second of a soak.

    Attributes:
        at_s: since the start.
        answered: good requests that were answered.
        wrong: answers that were not the right ones.
        failed: good requests that got an error.
        refused: bad requests that were refused, as they must be.
        p50_ms, p99_ms: of the good requests of that second; 0 if there were none.
        memory_mb: of Triton and its backend processes; what they share counts once.
        descriptors: files and sockets they hold open.
        shared_mb: of shared memory they hold.
        restarts: of Triton since the start.
    """

    at_s: float
    answered: int
    wrong: int
    failed: int
    refused: int
    p50_ms: float
    p99_ms: float
    memory_mb: float
    descriptors: int
    shared_mb: float
    restarts: int


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str
    ok: bool


def judge(samples: Sequence[Sample]) -> list[Finding]:
    """Whether answers were right and nothing grew: the last quarter of the judged run against its first."""
    steady = samples[int(len(samples) * WARM_UP) :]
    quarter = max(1, len(steady) // 4)
    early, late = steady[:quarter], steady[-quarter:]

    def medians(name: str) -> tuple[float, float]:
        return tuple(statistics.median(getattr(each, name) for each in part) for part in (early, late))  # type: ignore[return-value]

    def growth(name: str, unit: str, share: float, slack: float) -> Finding:
        before, after = medians(name)
        return Finding(name, f"{before:.0f} to {after:.0f} {unit}", after <= before * (1 + share) + slack)

    wrong, failed = sum(each.wrong for each in samples), sum(each.failed for each in samples)
    return [
        Finding("wrong answers", f"{wrong:,} of {sum(each.answered for each in samples):,}", wrong == 0),
        Finding("good requests that failed", f"{failed:,}", failed == 0),
        Finding("restarts", f"{samples[-1].restarts}", samples[-1].restarts == 0),
        growth("memory_mb", "MB", 0.05, 10),
        growth("descriptors", "", 0.05, 20),
        growth("shared_mb", "MB", 0.05, 1),
        growth("p50_ms", "ms", 0.5, 5),
        growth("p99_ms", "ms", 0.5, 20),
    ]


def draw(samples: Sequence[Sample], path: Path) -> None:
    """A picture of the run: latency, memory, descriptors and shared memory, answers, over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)
    at = [each.at_s for each in samples]
    for axis, lines, unit in (
        (axes[0], {"p99_ms": "p99", "p50_ms": "p50"}, "ms"),
        (axes[1], {"memory_mb": "memory", "shared_mb": "shared memory"}, "MB"),
        (axes[2], {"descriptors": "descriptors"}, "open"),
        (axes[3], {"answered": "answered", "refused": "refused (bad)", "failed": "failed"}, "a second"),
    ):
        for name, label in lines.items():
            axis.plot(at, [getattr(each, name) for each in samples], label=label, linewidth=1)
        axis.axvspan(0, at[int(len(at) * WARM_UP)], color="0.92", zorder=0)
        axis.set_ylabel(unit)
        axis.set_ylim(0, 1.3 * max(1.0, *(max(getattr(each, name) for each in samples) for name in lines)))
        axis.legend(loc="upper left", frameon=False, ncols=3)  # in the room above the lines
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("seconds (grey: warming up, not judged)")
    figure.savefig(path, dpi=120)
