"""What the load tester itself can do: does its sender keep the schedule?"""

from __future__ import annotations

from collections.abc import Iterator

from client_side import fake_server
from rows import Row, spread

from alexnet_load.conduct import conduct
from alexnet_load.run import Plan
from alexnet_load.summary import percentile_ms, summarize

ROUNDS, RATE, SECONDS = 5, 2000, 8.0


def bench_load() -> Iterator[Row]:
    """How late requests are at a rate that one process can send, to a fake server on the same processors."""
    late_ms, notes = [], []
    with fake_server() as target:
        for number in range(ROUNDS):
            summary = summarize(
                conduct(Plan(target, arrivals=f"poisson:{RATE}", duration_s=SECONDS, warm_up_s=2.0, seed=number))
            )
            late_ms.append(percentile_ms(summary.lag, 99))
            notes.append(f"{summary.ok_rate:.0f}")
    yield spread(
        f"load tester: p99 of its sender's lag at {RATE:,} requests a second, one process",
        "",
        late_ms,
        unit="ms",
        goal=5.0,
        at_most=True,
        figures=f"{', '.join(notes)} answers a second",
    )
