"""Benchmark of the load generator: does a sender process keep its schedule?"""

from __future__ import annotations

from collections.abc import Iterator

from results import Result
from servers import fake_server

from alexnet_load.run import Plan
from alexnet_load.runner import run_plan
from alexnet_load.summary import percentile_ms, summarize

RATE, WARM_UP_S = 2000, 2.0


def bench_load_generator(*, rounds: int = 5, seconds: float = 6.0) -> Iterator[Result]:
    """Load generator lag at a fixed rate of one sender process; the fake server uses the same CPUs."""
    lags_ms, answered = [], []
    with fake_server() as target:
        for seed in range(rounds):
            plan = Plan(
                target, arrivals=f"poisson:{RATE}", duration_s=WARM_UP_S + seconds, warm_up_s=WARM_UP_S, seed=seed
            )
            summary = summarize(run_plan(plan))
            lags_ms.append(percentile_ms(summary.lag, 99))
            answered.append(f"{summary.ok_rate:.0f}")
    yield Result.of(
        f"load generator: p99 lag at {RATE:,} requests/s with one sender process",
        lags_ms,
        unit="ms",
        goal=5.0,
        at_most=True,
        details=f"{', '.join(answered)} answers/s",
    )
