"""Evaluation of a soak test: findings that compare the start with the end of the run, and their table."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

from rich.console import Console
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


def finish(findings: Sequence[Finding], title: str, **report: object) -> NoReturn:
    """Print the findings as a table and as JSON; exit with 1 if a value is not ok."""
    table = Table("value", "found", "verdict", title=title)
    for each in findings:
        table.add_row(each.name, each.found, Text("ok", "green") if each.ok else Text("not ok", "red"))
    Console().print(table)
    print(json.dumps({**report, "findings": [asdict(each) for each in findings]}))
    sys.exit(0 if all(each.ok for each in findings) else 1)
