"""Evaluation of a soak test: findings that compare the start with the end of the run, the table and the chart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

WARM_UP = 0.2
"""Share of the run that is not evaluated: buffers and memory pools still grow."""


@dataclass(frozen=True)
class Sample:
    """One second of a soak test of the server.

    Attributes:
        at_s: time since the start.
        answered: valid requests that were answered.
        wrong: wrong answers to valid requests.
        failed: valid requests that failed.
        rejected: invalid requests that were rejected, as expected.
        p50_ms, p99_ms: latency of the valid requests of that second; 0 without requests.
        memory_mb: memory of Triton and its backend processes (shared pages count once).
        descriptors: their open file descriptors.
        shared_mb: their shared memory.
        restarts: 1 if Triton was restarted since the start.
    """

    at_s: float
    answered: int
    wrong: int
    failed: int
    rejected: int
    p50_ms: float
    p99_ms: float
    memory_mb: float
    descriptors: int
    shared_mb: float
    restarts: int


@dataclass(frozen=True)
class Finding:
    """One evaluated value."""

    name: str
    found: str
    ok: bool


def growth(values: Sequence[float], name: str, unit: str, *, share: float, slack: float) -> Finding:
    """Whether the median of the last quarter, after the warm-up, exceeds that of the first by ``share`` and ``slack``."""
    steady = values[int(len(values) * WARM_UP) :]
    quarter = max(1, len(steady) // 4)
    before, after = statistics.median(steady[:quarter]), statistics.median(steady[-quarter:])
    return Finding(name, f"{before:.0f} to {after:.0f} {unit}".rstrip(), after <= before * (1 + share) + slack)


def evaluate(samples: Sequence[Sample]) -> list[Finding]:
    """Whether all answers were right, and whether memory, descriptors and latency are steady."""

    def grown(name: str, unit: str, share: float, slack: float) -> Finding:
        # The latency of a second without answers is unknown, not 0.
        valid = [each for each in samples if each.answered or unit != "ms"]
        return growth([getattr(each, name) for each in valid] or [0.0], name, unit, share=share, slack=slack)

    answered, wrong, failed = (sum(getattr(each, name) for each in samples) for name in ("answered", "wrong", "failed"))
    return [
        Finding("wrong answers", f"{wrong:,} of {answered:,}", wrong == 0),
        Finding("failed valid requests", f"{failed:,}", failed == 0),
        Finding("restarts", f"{samples[-1].restarts}", samples[-1].restarts == 0),
        grown("memory_mb", "MB", 0.05, 10),
        grown("descriptors", "", 0.05, 20),
        grown("shared_mb", "MB", 0.05, 1),
        grown("p50_ms", "ms", 0.5, 5),
        grown("p99_ms", "ms", 0.5, 20),
    ]


def table_of(findings: Sequence[Finding], title: str) -> Table:
    """All findings for the terminal."""
    table = Table("value", "found", "verdict", title=title)
    for each in findings:
        table.add_row(each.name, each.found, Text("ok", "green") if each.ok else Text("not ok", "red"))
    return table


CHARTS: Sequence[tuple[str, Mapping[str, str]]] = (
    ("ms", {"p99_ms": "p99", "p50_ms": "p50"}),
    ("MB", {"memory_mb": "memory", "shared_mb": "shared memory"}),
    ("open", {"descriptors": "file descriptors"}),
    ("per second", {"answered": "answered", "rejected": "rejected (invalid)", "failed": "failed"}),
)
"""Unit, and label of each line by the name of its field."""


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Draw latency, memory, file descriptors and requests over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), layout="constrained")
    at = [each.at_s for each in samples]
    for axis, (unit, lines) in zip(figure.subplots(len(CHARTS), 1, sharex=True), CHARTS, strict=True):
        for name, label in lines.items():
            axis.plot(at, [getattr(each, name) for each in samples], label=label, linewidth=1)
        axis.axvspan(0, at[int(len(at) * WARM_UP)], color="0.92", zorder=0)
        axis.set_ylabel(unit)
        axis.set_ylim(0, 1.3 * max(1.0, *(getattr(each, name) for each in samples for name in lines)))
        axis.legend(loc="upper left", frameon=False, ncols=3)
        axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("seconds (grey: warm-up, not evaluated)")
    figure.savefig(path, dpi=120)
